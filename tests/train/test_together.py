"""What ranks agree on: when to draw a batch, what memory each may take, how long a step takes."""

import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from support.models import BYTES
from support.runs import CONFIG, few
from support.thread_ranks import ThreadWorld, in_threads

from mlxchat.cli.ranks import environment
from mlxchat.data.loader import Batch, LoaderState, Stopped
from mlxchat.errors import DeviceError, MemoryLimitError, MlxchatError
from mlxchat.home import Home
from mlxchat.model.gpt import GPT
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.division import fit
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import plan
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated, Noted
from mlxchat.train import measure, ranks, world
from mlxchat.train.inputs import open_documents
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.measure import least_resources, step_seconds
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.ranks import LastNote, RankBatches
from mlxchat.train.resume import TrainState
from mlxchat.train.sharing import _require_all_ready
from mlxchat.train.step import StepParts
from mlxchat.train.world import World, watchdog

MEANS = Resources(memory=8 * 2**30, value_bytes=4, scores_held="none", chunk_rows=256)
BATCH = Batch(np.zeros((1, 2), np.int32), np.zeros((1, 2), np.int32), LoaderState())


def test_a_rank_that_waits_for_its_data_says_so_and_the_others_wait() -> None:
    said: list[str] = []

    def draw_in(seconds: float) -> list[Batch]:
        time.sleep(seconds)
        return [BATCH]

    def work(here: ThreadWorld) -> int:
        note = LastNote()
        batches = RankBatches(here, lambda: False, dict, note, said.append)
        if here.rank:
            note(Noted(0.0, "Waiting for shard_00007."))
            said.clear()
        drawn = [batches.step_batches(1, lambda: draw_in(0.25 * here.rank)) for _ in range(2)]
        return sum(map(len, drawn))

    assert in_threads(3, work) == [2, 2, 2]
    # Each of the three tells itself; in a run, only rank 0 has a screen.
    assert sorted(set(said)) == [f"Rank {rank}: Waiting for shard_00007." for rank in (1, 2)]
    assert len(said) == 3 * 2


def test_an_interrupt_on_any_rank_ends_a_wait_on_all() -> None:
    def work(here: ThreadWorld) -> bool:
        batches = RankBatches(here, lambda: here.rank == 1, dict)
        batches.draw(lambda: [BATCH])  # an evaluation goes on
        with pytest.raises(Stopped):
            batches.step_batches(1, lambda: [BATCH])
        return True

    assert in_threads(2, work) == [True, True]


def test_the_weights_are_compared_every_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "COMPARED_EVERY", 3)
    compared = []

    class Comparing(World):
        def require_equal(self, arrays: dict[str, mx.array], step: int) -> None:
            compared.append(step)

    batches = RankBatches(Comparing(), lambda: False, dict)
    for number in range(1, 8):
        batches.step_batches(number, lambda: [BATCH])
    assert compared == [2, 5]


def test_a_rank_is_given_up_after_the_limit_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(world, "TICK", 0.01)
    late: list[DeviceError] = []
    with watchdog(10.0, late.append):
        time.sleep(0.03)
    with watchdog(0.03, late.append):
        while not late:
            time.sleep(0.01)
    time.sleep(0.03)
    assert len(late) == 1
    assert "has not responded" in late[0].problem


def resources_of(free: list[int], backend: str, monkeypatch: pytest.MonkeyPatch) -> Resources:
    """Return what ranks agree on, the last of which is on a machine of its own."""
    monkeypatch.setattr(
        measure, "machine", lambda: cast(object, type("M", (), {"backend": backend}))
    )

    class Given(World):
        def all_gather(self, numbers):  # type: ignore[no-untyped-def]
            rest = [[memory, 4, 2, 1] for memory in free[1:]]
            return np.array([numbers, *rest], np.float64)

        def all_gather_texts(self, text: str) -> list[str]:
            shared = backend != "cuda"
            near = [text if shared else f"{text}{n}" for n in range(len(free) - 1)]
            return [*near, "elsewhere"]

    monkeypatch.setattr(
        measure, "resources", lambda dtype: MEANS._replace(memory=free[0], streams=2)
    )
    return least_resources(Given())


@pytest.mark.parametrize(
    ("backend", "expected", "by", "devices"),
    [
        ("cpu", 400, "the machine of rank 1, for each of its 2 ranks,", 2),
        ("metal", 400, "the machine of rank 1, for each of its 2 ranks,", 2),
        ("cuda", 600, "the machine of rank 2", 3),
    ],
)
def test_ranks_plan_with_the_least_of_their_memory(
    monkeypatch: pytest.MonkeyPatch, backend: str, expected: int, by: str, devices: int
) -> None:
    found = resources_of([900, 800, 600], backend, monkeypatch)
    assert (found.memory, found.spared_by, found.devices) == (expected, by, devices)
    assert (found.scores_held, found.streams) == ("all", 1)  # the most, and the least, of any


def test_a_model_that_is_too_large_names_whose_memory_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = resources_of([8 * 2**30, 8 * 2**30, 2**20], "cpu", monkeypatch)
    model = plan(CONFIG, 300, MEANS).model
    with pytest.raises(MemoryLimitError, match=r"the machine of rank 2 can spare 1\.0 MB"):
        fit(CONFIG, model, 8, found)


def test_the_sums_of_a_measured_step_count_once() -> None:
    """Of 40 micro-batches, 2 ranks time 4 each; what they wait for is once in every step."""
    now, made = 0.0, plan(CONFIG, 300, MEANS)
    many = made.model_copy(update={"accumulation": 40})
    seen: list[StepParts] = []

    def compiled(parts: StepParts, stop: ShouldStop = lambda: False) -> Launch:
        seen.append(parts)

        def launch(number: int) -> Pending:
            nonlocal now
            now += 4 * 0.25 + 7  # computed, and waited for
            return Pending(number, mx.zeros(3), LoaderState(), 7.0)

        return launch

    class Two(World):
        def __init__(self) -> None:
            super().__init__()
            self.size = 2

    seconds = step_seconds(many, 100.0, lambda: now, compiled, world=Two())
    assert seen[0].own_plan.accumulation == 4
    assert seconds == pytest.approx(20 * 0.25 + 7)


@pytest.mark.parametrize(
    ("documents", "rows"),
    [(10, 1), (10, 5), (10, 24), (1, 24)],  # in batches of 4: one, two, six, one document's
)
def test_an_evaluation_is_the_same_on_any_number_of_ranks(
    tmp_path: Path, documents: int, rows: int
) -> None:
    config = CONFIG.model_copy(update={"dataset": "mine"})
    made = plan(config, BYTES.vocab_size, MEANS).model_copy(update={"eval_rows": rows})
    few(Home(tmp_path).data("mine"), 0, 1, documents=documents)
    opened = open_documents(config, Home(tmp_path), lambda _: None)

    def evaluated(here: World) -> Evaluated:
        stage = Pretraining(config, Home(tmp_path), world=here)
        model = GPT.new(made.model, 0, mx.float32)
        state = TrainState(made, BYTES, model, MuonAdamW(model), 0, LoaderState())
        return cast(Evaluated, list(stage.evaluation(opened, state).events(0))[-1])

    class Part(World):
        """One rank, which remembers what it has added up."""

        def __init__(self, rank: int, size: int) -> None:
            super().__init__()
            self.rank, self.size = rank, size

        def all_gather(self, numbers):  # type: ignore[no-untyped-def]
            sums.append(numbers)
            return np.array(sums, np.float64)

    alone = evaluated(World())
    for size in (2, 3):
        sums: list[list[float]] = []
        for rank in range(size):  # the last one has the numbers of all
            last = evaluated(Part(rank, size))
        assert 0 < last.tokens == alone.tokens <= rows * config.max_seq_len
        assert last.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-6)
        assert last.loss == pytest.approx(alone.loss, rel=1e-6)


def test_why_a_rank_cannot_take_part_is_said_on_all() -> None:
    fault = MemoryLimitError("This machine has 4 GiB.", "Use a smaller `memory_limit`.")

    def work(here: ThreadWorld) -> str:
        with pytest.raises(MlxchatError) as raised:
            _require_all_ready(here, fault if here.rank == 1 else None)
        return str(raised.value)

    said = "Rank 1: This machine has 4 GiB.\nUse a smaller `memory_limit`."
    assert in_threads(3, work) == [said] * 3


def test_ranks_on_a_cpu_share_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    threads = [environment(n, tmp_path)["OPENBLAS_NUM_THREADS"] for n in (2, 3, 12)]
    assert threads == ["4", "2", "1"]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "5")
    assert environment(2, tmp_path)["OPENBLAS_NUM_THREADS"] == "5"
