"""A whole run: what it yields, stores and logs; going on after an interruption, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlxchat.ckpt import layout, store
from mlxchat.data.shards import LocalShards
from mlxchat.data.tokenizer import Tokenizer
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.telemetry import Ended, Evaluated, Event, Noted, Sampled, Saved, Stepped
from mlxchat.train.pretrain import pretrain
from mlxchat.train.settings import PretrainConfig

SETTINGS = {
    "depth": 1,
    "dataset": "builtin",
    "vocab_size": 300,
    "max_seq_len": 32,
    "device_batch_size": 4,
    "total_batch_size": 256,
    "num_iterations": 12,
    "eval_every": 5,
    "eval_tokens": 512,
    "sample_every": 6,
    "save_every": 3,
    "keep": 2,
    "model_tag": "run",
}
CONFIG = PretrainConfig.model_validate(SETTINGS)


def run(
    home: Path, config: PretrainConfig = CONFIG, stop_at: int = 0, **keywords: bool
) -> list[Event]:
    """All events of a run that is asked to stop once step ``stop_at`` is seen."""
    seen: list[Event] = []

    def stop() -> bool:
        return bool(stop_at) and any(
            isinstance(event, Stepped) and event.step >= stop_at for event in seen
        )

    for event in pretrain(config, Home(home), lambda _: None, stop=stop, **keywords):
        seen.append(event)
    return seen


def final(home: Path) -> dict[str, mx.array]:
    """Every array of the last step: weights, optimizer, loader."""
    folder = store.directory(Home(home).runs / "run", 12)
    files = (layout.MODEL, layout.OPTIMIZER, layout.LOADER)
    return {f"{f} {k}": v for f in files for k, v in layout.read_arrays(folder / f).items()}


def assert_same(a: dict[str, mx.array], b: dict[str, mx.array]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert mx.array_equal(a[name], b[name]).item(), name


def logged(home: Path, kind: str) -> list[int]:
    lines = Home(home).log("run").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    home = tmp_path_factory.mktemp("straight")
    return home, run(home)


def test_what_happens_in_order(straight: tuple[Path, list[Event]]) -> None:
    home, events = straight
    kinds = (Stepped, Evaluated, Sampled, Saved, Ended)
    order = [(type(e).__name__, e.step) for e in events if isinstance(e, kinds)]
    deduplicated = [entry for i, entry in enumerate(order) if entry not in order[:i]]
    assert deduplicated == [
        ("Evaluated", 0),
        *[("Stepped", step) for step in (1, 2, 3)],
        ("Saved", 3),
        *[("Stepped", step) for step in (4, 5)],
        ("Evaluated", 5),
        ("Stepped", 6),
        ("Sampled", 6),
        ("Saved", 6),
        *[("Stepped", step) for step in (7, 8, 9)],
        ("Saved", 9),
        ("Stepped", 10),
        ("Evaluated", 10),
        *[("Stepped", step) for step in (11, 12)],
        ("Evaluated", 12),
        ("Sampled", 12),
        ("Saved", 12),
        ("Ended", 12),
    ]
    assert store.steps(Home(home).runs / "run") == [9, 12]
    assert logged(home, "step") == list(range(1, 13))
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert losses[-1] < losses[0] - 1
    folder = store.latest(Home(home).runs / "run")
    assert folder is not None
    assert layout.read_model(folder, mx.float32).conversational


@pytest.mark.parametrize("stop_at", [1, 3, 4, 8])
def test_interrupted_and_resumed(
    straight: tuple[Path, list[Event]], tmp_path: Path, stop_at: int
) -> None:
    first = run(tmp_path, stop_at=stop_at)
    assert isinstance(first[-1], Ended)
    assert first[-1].reason == "interrupted"
    second = run(tmp_path)
    assert second[-1] == Ended(second[-1].time, 12, "finished")
    assert_same(final(tmp_path), final(straight[0]))
    assert logged(tmp_path, "step") == list(range(1, 13))
    for event in (*first, *second):
        if isinstance(event, Evaluated):
            match = [e for e in straight[1] if isinstance(e, Evaluated) and e.step == event.step]
            assert event.bits_per_byte == match[0].bits_per_byte


def test_a_modern_run_interrupted_and_resumed(tmp_path: Path) -> None:
    modern = CONFIG.model_copy(update={"arch": "modern"})
    straight = run(tmp_path / "straight", modern)
    run(tmp_path / "resumed", modern, stop_at=4)
    run(tmp_path / "resumed", modern)
    assert_same(final(tmp_path / "resumed"), final(tmp_path / "straight"))
    rates = [event.learning_rate for event in straight if isinstance(event, Stepped)]
    full = 0.02 * (256 / 2**19) ** 0.5
    assert rates == pytest.approx([full * step / 40 for step in range(1, 13)])  # it warms up


SCRIPT = """
import json, sys
from pathlib import Path
from mlxchat.home import Home
from mlxchat.train.pretrain import pretrain
from mlxchat.train.settings import PretrainConfig
config = PretrainConfig.model_validate(json.loads(sys.argv[2]))
for event in pretrain(config, Home(Path(sys.argv[1])), lambda _: None):
    print(type(event).__name__, getattr(event, "step", ""), flush=True)
"""


def test_killed_at_any_moment_and_resumed(
    straight: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(SETTINGS)]
    for lines, pause in ((3, 0.0), (9, 0.004), (7, 0.002)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_same(final(tmp_path), final(straight[0]))
    assert logged(tmp_path, "step") == list(range(1, 13))


def test_a_finished_run_says_so(straight: tuple[Path, list[Event]]) -> None:
    events = run(straight[0])
    assert [type(event) for event in events] == [Noted]
    assert isinstance(events[0], Noted)
    assert "is finished" in events[0].text


def test_other_settings_are_refused_and_named(straight: tuple[Path, list[Event]]) -> None:
    other = CONFIG.model_copy(update={"num_iterations": 20, "keep": 9, "matrix_lr": 0.01})
    with pytest.raises(MlxchatError) as raised:
        run(straight[0], other)
    assert "--num-iterations (12 -> 20)" in raised.value.problem
    assert "--matrix-lr (0.02 -> 0.01)" in raised.value.problem
    assert "keep" not in raised.value.problem
    assert "--model-tag" in raised.value.remedy
    assert "--fresh" in raised.value.remedy


def test_fresh_sets_the_old_run_aside(tmp_path: Path) -> None:
    run(tmp_path, stop_at=2)
    events = run(tmp_path, CONFIG.model_copy(update={"num_iterations": 3}), fresh=True)
    runs = Home(tmp_path).runs
    assert store.steps(runs / "run") == [3]
    assert store.steps(runs / "run.old1")
    assert logged(tmp_path, "step") == [1, 2, 3]
    assert Home(tmp_path).log("run.old1").exists()
    assert any(isinstance(e, Noted) and "set aside as run.old1" in e.text for e in events)


def test_fresh_with_settings_that_cannot_work_leaves_the_old_run(tmp_path: Path) -> None:
    run(tmp_path, stop_at=3)
    with pytest.raises(MlxchatError, match="not a multiple"):
        run(tmp_path, CONFIG.model_copy(update={"total_batch_size": 100}), fresh=True)
    assert store.steps(Home(tmp_path).runs / "run")
    (tmp_path / "logs" / "run.old1").mkdir()
    (tmp_path / "logs" / "run.old1" / "metrics.jsonl").touch()
    run(tmp_path, fresh=True)
    assert Home(tmp_path).log("run.old2").exists()


def test_one_process_a_run(tmp_path: Path) -> None:
    with (
        store.locked(Home(tmp_path).runs / "run"),
        pytest.raises(MlxchatError, match="Another process is training run"),
    ):
        run(tmp_path)


def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, stop_at=3)
    before = store.steps(Home(tmp_path).runs / "run")

    def full(*_: object) -> None:
        raise RuntimeError("[write] Unable to write 31798 bytes to file.")

    with monkeypatch.context() as patched:
        patched.setattr(mx, "save_safetensors", full)
        with pytest.raises(MlxchatError, match="could not be saved"):
            run(tmp_path)
    assert store.steps(Home(tmp_path).runs / "run") == before
    assert not list((Home(tmp_path).runs / "run").glob(".unfinished*"))
    run(tmp_path)


def test_more_evaluation_tokens_on_resume_count(tmp_path: Path) -> None:
    run(tmp_path, stop_at=3)
    events = run(tmp_path, CONFIG.model_copy(update={"eval_tokens": 1024}))
    assert {event.tokens for event in events if isinstance(event, Evaluated)} == {1024}


def test_another_vocabulary_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_at=1)
    other = CONFIG.model_copy(update={"vocab_size": 400, "model_tag": "other"})
    with pytest.raises(MlxchatError, match="has 300 tokens, not 400"):
        run(tmp_path, other)


def shards(folder: Path, *numbers: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        texts = [f"This is text {i} of shard {number}, about foxes." * 3 for i in range(150)]
        path = folder / f"shard_{number:05d}.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=50)
    return folder


OWN = CONFIG.model_copy(update={"dataset": "fineweb-edu", "sample_every": 0})


def test_a_single_training_shard_resumes_at_its_end(tmp_path: Path) -> None:
    config = OWN.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})
    for stop_at in (1, 2, 3, 4, 5, 6, 7, 9, 0):
        run(tmp_path, config, stop_at=stop_at)
    assert store.steps(Home(tmp_path).runs / "run")[-1] == 12
    assert logged(tmp_path, "step") == list(range(1, 13))


def test_the_data_must_be_what_it_was(tmp_path: Path) -> None:
    config = OWN.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1, 2)})
    run(tmp_path, config, stop_at=3)
    (tmp_path / "data" / "shard_00001.parquet").rename(tmp_path / "shard_00001.parquet")
    shards(tmp_path / "data", 3, 4)
    with pytest.raises(MlxchatError, match=r"data that is not there: shard_00001\.parquet"):
        run(tmp_path, config)
    (tmp_path / "shard_00001.parquet").rename(tmp_path / "data" / "shard_00001.parquet")


def test_data_that_fails_saves_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OWN.model_copy(
        update={
            "data_dir": shards(tmp_path / "data", 0, 1, 2),
            "save_every": 0,
            "eval_every": 0,
            "num_iterations": 40,
        }
    )
    acquired: list[str] = []
    acquire = LocalShards.acquire

    def failing(self: LocalShards, name: str) -> Path:
        acquired.append(name)
        if len(acquired) > 10:
            raise MlxchatError("no network", "wait")
        return acquire(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(LocalShards, "acquire", failing)
        with pytest.raises(MlxchatError, match="no network"):
            run(tmp_path, config)
    done = store.steps(Home(tmp_path).runs / "run")
    assert len(done) == 1
    assert logged(tmp_path, "step") == list(range(1, done[0] + 1))
    run(tmp_path, config)
    assert logged(tmp_path, "step") == list(range(1, 41))


def test_the_checkpoint_keeps_its_tokenizer(tmp_path: Path) -> None:
    run(tmp_path, stop_at=1)
    kept = Tokenizer.load(tmp_path / "tokenizer_builtin").byte_lengths()
    (tmp_path / "tokenizer_builtin" / "tokenizer.json").unlink()
    run(tmp_path)
    folder = store.directory(Home(tmp_path).runs / "run", 12)
    assert Tokenizer.load(folder).byte_lengths() == kept


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    run(tmp_path, stop_at=3)
    folder = store.latest(Home(tmp_path).runs / "run")
    assert folder is not None
    for path in sorted(folder.iterdir()):
        if path.name in (layout.GENERATION, "tokenizer.json"):
            continue
        name = path.name
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(MlxchatError, match=f"{name} is missing"):
            run(tmp_path)
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(MlxchatError, match=f"{name} is damaged"):
            run(tmp_path)
        (folder / name).write_bytes(content)
    run(tmp_path)


def test_a_vocabulary_that_does_not_fit(straight: tuple[Path, list[Event]], tmp_path: Path) -> None:
    folder = store.latest(Home(straight[0]).runs / "run")
    assert folder is not None
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((tmp_path / layout.CONFIG).read_text())
    (tmp_path / layout.CONFIG).write_text(json.dumps({**fields, "vocab_size": 400}))
    with pytest.raises(MlxchatError, match="tokenizer has 300 tokens, the model 400"):
        layout.read_model(tmp_path, mx.float32)
    weights = layout.read_arrays(tmp_path / layout.MODEL)
    (tmp_path / layout.CONFIG).write_text(json.dumps(fields))
    mx.save_safetensors(str(tmp_path / layout.MODEL), {**weights, "extra": mx.zeros(1)})
    with pytest.raises(MlxchatError, match="extra is unexpected"):
        layout.read_model(tmp_path, mx.float32)


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches are traced twice (first and later in a step), whatever the number of steps."""
    from mlxchat.model.gpt import GPT

    traces = []
    loss = GPT.loss

    def counted(self: GPT, ids: mx.array, targets: mx.array) -> mx.array:
        traces.append(ids.shape)
        return loss(self, ids, targets)

    monkeypatch.setattr(GPT, "loss", counted)
    run(tmp_path, CONFIG.model_copy(update={"eval_every": 0, "sample_every": 0}))
    assert len(traces) == 2
