"""Several ranks that train one run: against one process, killed, stopped, started differently."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from psutil import STATUS_STOPPED, Process, wait_procs

from mlxchat.checkpoint import store
from mlxchat.cli.ranks import environment, own
from mlxchat.data.shards import DATASETS, shard_name
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.system import own_command
from tests.support.hub_server import Fault, HubServer, address
from tests.support.runs import SETTINGS, few, final, train_builtin_tokenizer

STEPS = {**SETTINGS, "num_iterations": 12, "keep": 20, "device_batch_size": 4}  # 8 rows a step
PATIENCE = 60  # seconds; a machine that tests on two cores is slow


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_builtin_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def options(**settings: object) -> list[str]:
    named = {**STEPS, **settings}
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in named.items() if value is not None
    ]


class Rank:
    """A process that was started as mlx.launch does, and what it says."""

    def __init__(self, words: Sequence[str], variables: dict[str, str], said: Path) -> None:
        self._said = said
        with said.open("w") as file:
            self.process = subprocess.Popen(
                own_command("mlxchat", *words), env=variables, stdout=file, stderr=file
            )

    def ended(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and what was said."""
        return self.process.wait(120), self._said.read_text()

    def end(self) -> None:
        """Leave nothing running."""
        self.process.kill()
        self.process.wait()


@contextmanager
def together(
    homes: Sequence[Path],
    arguments: Sequence[Sequence[str]],
    folder: Path,
    more: Sequence[dict[str, str]] = (),
) -> Iterator[list[Rank]]:
    """Start ranks, each with its home, arguments and variables; all end with the context."""
    addresses = environment(len(homes), folder)
    with ExitStack() as stack:
        ranks = []
        for rank, (home, words) in enumerate(zip(homes, arguments, strict=True)):
            variables = os.environ | addresses | own(rank) | {"MLXCHAT_HOME": str(home)}
            variables |= more[rank] if more else {}
            ranks.append(Rank(words, variables, folder / f"said-{rank}.txt"))
            stack.callback(ranks[-1].end)
        yield ranks


def trained(
    ranks: int, home: Path, tokenizer: Path, patience: int = PATIENCE, **settings: object
) -> list[tuple[int, str]]:
    """Train with so many ranks in one home; returns their exit codes and what they said."""
    words = ["train", f"--rank-timeout={patience}", *options(tokenizer_dir=tokenizer, **settings)]
    home.mkdir(exist_ok=True)
    with together([home] * ranks, [words] * ranks, home) as started:
        return [rank.ended() for rank in started]


def alone(home: Path, tokenizer: Path, **settings: object) -> None:
    home.mkdir(exist_ok=True)
    words = own_command("mlxchat", "train", *options(tokenizer_dir=tokenizer, **settings))
    subprocess.run(words, env=os.environ | {"MLXCHAT_HOME": str(home)}, check=True)


def until_saved(home: Path, rank: Rank, steps: int = 0) -> None:
    """Wait until a run has saved more than so many steps, or the rank has ended."""
    deadline = time.monotonic() + 120
    while len(store.steps(Home(home).run("run"))) <= steps and rank.process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_logged(home: Path, events: int) -> None:
    """Wait until the log has so many steps and evaluations."""
    deadline = time.monotonic() + 60
    while not Home(home).log("run").exists() or len(log(home)) < events:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def log(home: Path) -> list[dict[str, float]]:
    events = map(json.loads, Home(home).log("run").read_text().splitlines())
    return [event for event in events if event["event"] in ("step", "evaluation")]


def assert_alike(one: Path, other: Path) -> None:
    """The last steps agree to 1e-5 of each array, by its norm.

    That is what another micro-batch size changes in one process, too.
    """
    a, b = final(one), final(other)
    assert a.keys() == b.keys()
    for name in a:
        x, y = (array[name].astype(mx.float32).reshape(-1) for array in (a, b))
        if x.size:
            apart = mx.linalg.norm(x - y).item()
            assert apart <= 1e-5 * max(1e-3, mx.linalg.norm(x).item()), name


def assert_same_course(one: Path, other: Path) -> None:
    for a, b in zip(log(one), log(other), strict=True):
        assert (a["event"], a["step"]) == (b["event"], b["step"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_does(tmp_path: Path, tokenizer: Path) -> None:
    settings = {"num_iterations": 12, "sample_every": 0}
    alone(tmp_path / "one", tokenizer, **settings)
    codes = trained(2, tmp_path / "two", tokenizer, **settings)
    assert [code for code, _ in codes] == [0, 0], codes
    assert codes[1][1] == ""  # only rank 0 speaks
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert_same_course(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (3, {"total_batch_size": 288, "device_batch_size": 3}),
        (2, {"total_batch_size": 96, "device_batch_size": 3}),  # 3 rows: not divisible by 2
        (2, {"arch": "modern"}),
        (2, {"dropout": 0.2}),
        (2, {"rank_sums": "bfloat16"}),
    ],
    ids=["three", "uneven", "modern", "dropout", "rounded"],
)
def test_ranks_of_any_number(
    tmp_path: Path, tokenizer: Path, ranks: int, settings: dict[str, object]
) -> None:
    settings = {**settings, "sample_every": 0}
    if settings.get("total_batch_size") == 96:
        codes = trained(ranks, tmp_path / "many", tokenizer, **settings)
        assert codes[0][0] == 1
        assert "The 3 rows of a step cannot be divided evenly among 2 ranks." in codes[0][1]
        assert "Use 1 or 3 ranks" in codes[0][1]
        return
    codes = trained(ranks, tmp_path / "many", tokenizer, **settings)
    assert {code for code, _ in codes} == {0}, codes
    if "dropout" in settings:  # its masks differ by rank
        return
    if settings.pop("rank_sums", None):
        alone(tmp_path / "one", tokenizer, **settings)
        pairs = zip(log(tmp_path / "one"), log(tmp_path / "many"), strict=True)
        apart = [abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs]
        assert 1e-7 < max(apart) < 2e-3
        return
    alone(tmp_path / "one", tokenizer, **settings)
    assert_alike(tmp_path / "one", tmp_path / "many")
    assert_same_course(tmp_path / "one", tmp_path / "many")


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_with_other_numbers(
    tmp_path: Path, tokenizer: Path
) -> None:
    settings = {
        "num_iterations": 12,
        "sample_every": 0,
        "save_every": 1,
        "total_batch_size": 384,  # 12 rows, for 1, 2 or 3 ranks
    }
    alone(tmp_path / "one", tokenizer, **settings)
    order, home = random.Random(20), tmp_path / "many"
    words = ["train", f"--rank-timeout={PATIENCE}"]
    words += options(tokenizer_dir=tokenizer, **settings)
    home.mkdir()
    for _ in range(10):
        ranks = order.choice((2, 3))
        with together([home] * ranks, [words] * ranks, home) as started:
            saved = (
                store.steps(Home(home).run("run")) if (home / "base_checkpoints").exists() else []
            )
            until_saved(home, started[0], len(saved))
            time.sleep(order.uniform(0, 0.1))
            victim = order.choice(started)
            victim.process.kill()
            codes = [rank.ended()[0] for rank in started]
        # What had ended by then has ended well, and what had not knows that it lost a rank.
        assert set(codes) <= {0, os.EX_SOFTWARE, -signal.SIGKILL}
    alone(home, tokenizer, **settings)
    assert_alike(tmp_path / "one", home)


@pytest.mark.slow
def test_a_rank_that_is_stopped_ends_the_others(tmp_path: Path, tokenizer: Path) -> None:
    words = ["train", "--rank-timeout=5", *options(tokenizer_dir=tokenizer, num_iterations=20_000)]
    tmp_path.mkdir(exist_ok=True)
    with together([tmp_path] * 2, [words] * 2, tmp_path) as (leader, other):
        until_saved(tmp_path, leader)
        other.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        code, said = leader.ended()
        assert time.monotonic() - began < 30
        assert code == os.EX_SOFTWARE
        assert "Another rank has not responded for 5 s." in said


@pytest.mark.slow
def test_what_differs_between_ranks_is_named(tmp_path: Path, tokenizer: Path) -> None:
    words = ["train", "--rank-timeout=60", *options(tokenizer_dir=tokenizer)]
    other = ["train", "--rank-timeout=60", *options(tokenizer_dir=tokenizer, total_batch_size=512)]
    with together([tmp_path] * 2, [words, other], tmp_path) as ranks:
        for code, said in [rank.ended() for rank in ranks]:
            assert code == 1
            assert "Rank 0 has --total-batch-size 256, rank 1 has 512." in said


@pytest.mark.slow
def test_other_data_on_one_rank_is_refused_by_name(tmp_path: Path, tokenizer: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    for home, text in zip(homes, ("foxes", "hens"), strict=True):
        few(Home(home).data("mine"), 0, 1, text=text)
    words = ["train", "--rank-timeout=60", *options(tokenizer_dir=tokenizer, dataset="mine")]
    with together(homes, [words] * 2, tmp_path) as ranks:
        for code, said in [rank.ended() for rank in ranks]:
            assert code == 1, said
            assert "Rank 1: shard_0000" in said
            assert "differs from rank 0's file of that name" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupt_on_any_rank_saves_once(tmp_path: Path, tokenizer: Path, rank: int) -> None:
    settings = {"num_iterations": 20_000, "sample_every": 0, "save_every": 10_000, "eval_every": 0}
    words = ["train", *options(tokenizer_dir=tokenizer, **settings)]
    with together([tmp_path] * 2, [words] * 2, tmp_path) as ranks:
        until_logged(tmp_path, 1)
        ranks[rank].process.send_signal(signal.SIGINT)
        codes = [each.ended()[0] for each in ranks]
    assert codes[0] == (130 if rank == 0 else 0)
    assert len(store.steps(Home(tmp_path).run("run"))) == 1


@contextmanager
def launcher(
    home: Path, *words: str, out: int = subprocess.DEVNULL
) -> Iterator["subprocess.Popen[str]"]:
    """Start `mlxchat train` with more words, as a shell does; a test that fails leaves nothing."""
    with subprocess.Popen(
        own_command("mlxchat", "train", *words),
        env=os.environ | {"MLXCHAT_HOME": str(home)},
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                started = Process(process.pid).children(recursive=True)
                for each in (*started, process):
                    each.kill()


@pytest.mark.slow
def test_the_launcher_ends_as_rank_0_does(tmp_path: Path, tokenizer: Path) -> None:
    with launcher(tmp_path, "--ranks=2", *options(tokenizer_dir=tokenizer)) as process:
        said = process.communicate(timeout=120)[1]
    assert (process.returncode, said) == (0, "")
    # Rows that cannot be divided are refused before the run is set aside.
    words = ["--ranks=3", "--fresh", *options(tokenizer_dir=tokenizer)]
    with launcher(tmp_path, *words) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "The 8 rows of a step cannot be divided evenly among 3 ranks." in said
    assert "rank 1:" not in said
    assert store.steps(Home(tmp_path).run("run"))[-1] == 12


@pytest.mark.slow
def test_ctrl_z_stops_all_ranks_for_longer_than_they_wait_for_each_other(
    tmp_path: Path, tokenizer: Path
) -> None:
    settings = {"num_iterations": 20_000, "sample_every": 0, "save_every": 10_000, "eval_every": 0}
    words = ["--ranks=2", "--rank-timeout=3", *options(tokenizer_dir=tokenizer, **settings)]
    with launcher(tmp_path, *words) as process:
        until_logged(tmp_path, 1)
        everyone = [Process(process.pid), *Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTSTP)
        deadline = time.monotonic() + 60
        while any(each.status() != STATUS_STOPPED for each in everyone):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        done = len(log(tmp_path))
        time.sleep(6)
        assert len(log(tmp_path)) == done
        process.send_signal(signal.SIGCONT)
        until_logged(tmp_path, done + 5)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert (process.returncode, said) == (130, "")


@pytest.mark.slow
def test_a_dry_run_names_what_ranks_would_be_refused(tmp_path: Path, tokenizer: Path) -> None:
    words = ["--dry-run", "--json", *options(tokenizer_dir=tokenizer)]
    with launcher(tmp_path, "--ranks=3", *words) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "The 8 rows of a step cannot be divided evenly among 3 ranks." in said
    assert "Use 1, 2, 4 or 8 ranks, or a --total-batch-size of 6 or 9 rows." in said
    facts = []
    for ranks in (1, 2):
        with launcher(tmp_path, f"--ranks={ranks}", *words, out=subprocess.PIPE) as process:
            printed, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, "")
        facts.append(json.loads(printed))
    assert [each["ranks"] for each in facts] == [1, 2]
    assert facts[1]["memory_limit"] < 0.75 * facts[0]["memory_limit"]  # they share the machine's
    assert not Home(tmp_path).runs.exists()


@pytest.mark.slow
def test_a_budget_is_kept_by_the_speed_of_all_ranks(tmp_path: Path, tokenizer: Path) -> None:
    settings = {"num_iterations": None, "total_batch_size": None, "sample_every": 0}
    words = options(tokenizer_dir=tokenizer, depth=2, budget="20s", **settings)
    began = time.monotonic()
    with launcher(tmp_path, "--ranks=2", *words) as process:
        said = process.communicate(timeout=180)[1]
    assert (process.returncode, said) == (0, "")
    assert time.monotonic() - began < 20 + 20  # ranks that start, on a machine that tests


@pytest.mark.slow
def test_a_slow_download_on_one_rank_ends_no_run(tmp_path: Path, tokenizer: Path) -> None:
    """Rank 1 gets nothing of a shard for longer than ranks wait for each other."""
    dataset = replace(DATASETS["fineweb-edu"], last_shard=3)
    names = [shard_name(number) for number in (0, 1, DATASETS["fineweb-edu"].last_shard)]
    few(tmp_path / "origin", 0, 1, DATASETS["fineweb-edu"].last_shard)
    files = {address(dataset, name): tmp_path / "origin" / name for name in names}
    shown = {"dataset": "fineweb-edu", "num_shards": 2}
    words = ["train", "--rank-timeout=4", "--streaming", "--json"]
    words += options(tokenizer_dir=tokenizer, **shown)
    with HubServer(files) as quick, HubServer(files) as slow:
        slow.faults = [Fault(names[1], cut=10, stall=9)]
        homes = [tmp_path / "a", tmp_path / "b"]
        hubs = [{"HF_ENDPOINT": server.endpoint} for server in (quick, slow)]
        with together(homes, [words] * 2, tmp_path, hubs) as ranks:
            ended = [rank.ended() for rank in ranks]
    assert [code for code, _ in ended] == [0, 0], ended
    assert f"Rank 1: Waiting for {names[1]}." in ended[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_one_to_restart(
    tmp_path: Path, tokenizer: Path, rank: int
) -> None:
    words = ["--ranks=2", *options(tokenizer_dir=tokenizer, num_iterations=20_000)]
    with launcher(tmp_path, *words) as process:
        deadline = time.monotonic() + 60
        while not store.steps(Home(tmp_path).run("run")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ranks = {child.environ()["MLX_RANK"]: child for child in Process(process.pid).children()}
        ranks[str(rank)].kill()
        said = process.communicate(timeout=120)[1]
    assert process.returncode == os.EX_SOFTWARE
    assert ("rank 1: ended by SIGKILL" in said) == (rank == 1)


@pytest.mark.slow
def test_ranks_save_and_end_when_their_launcher_is_killed(tmp_path: Path, tokenizer: Path) -> None:
    settings = {"num_iterations": 20_000, "sample_every": 0, "save_every": 10_000, "eval_every": 0}
    words = ["--ranks=2", *options(tokenizer_dir=tokenizer, **settings)]
    with launcher(tmp_path, *words) as process:
        until_logged(tmp_path, 1)
        ranks = Process(process.pid).children()
        process.kill()
        process.communicate(timeout=120)  # until the ranks have closed what they inherited
    assert wait_procs(ranks, timeout=60)[1] == []
    assert len(store.steps(Home(tmp_path).run("run"))) == 1


@pytest.mark.slow
def test_on_the_hosts_of_a_file(tmp_path: Path, tokenizer: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    with launcher(tmp_path, f"--hosts={hosts}", *options(tokenizer_dir=tokenizer)) as process:
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert store.steps(Home(tmp_path).run("run"))[-1] == 12
