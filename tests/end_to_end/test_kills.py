"""Runs killed by SIGKILL at random moments; `benchmarks/kills.py` is the long form."""

from pathlib import Path
from typing import Any

import pytest
from support.hub_server import COMMIT, HubServer, address
from support.killed_runs import NEW_MODEL, KilledRuns
from support.rl_runs import killed_settings
from support.runs import few
from support.saved_runs import RUNS

from mlxchat.checkpoint import store
from mlxchat.data.fingerprint import fingerprint
from mlxchat.data.shards import DATASETS, REVISION
from mlxchat.home import Home
from mlxchat.train.mid import MidTraining
from mlxchat.train.rl import Reinforcement
from mlxchat.train.sft import FineTuning
from mlxchat.train.stage import Stage, read_trainer

pytestmark = pytest.mark.slow


def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    counts = KilledRuns(tmp_path, NEW_MODEL).kill(kills=38, seed=1)
    assert counts["kills"] == 38
    assert counts["while a step was written"] > 0


@pytest.mark.parametrize("kind", [MidTraining, FineTuning])
def test_a_run_on_conversations_killed_at_random_moments_ends_as_an_undisturbed_one(
    kind: type[Stage[Any, Any]], tmp_path: Path
) -> None:
    [base] = (RUNS / "classic" / "base_checkpoints" / "classic").iterdir()
    settings = {"source": str(base), "data": [str(RUNS / "chats.jsonl")]}
    counts = KilledRuns(tmp_path, settings, kind=kind).kill(kills=10, seed=3)
    assert counts["kills"] == 10
    assert counts["while a step was written"] > 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_killed_while_reading_shards_ends_with_the_same_data(
    tmp_path: Path, streaming: bool
) -> None:
    dataset, shards = DATASETS["fineweb-edu"], 6
    numbers = (*range(shards), dataset.last_shard)
    origin = few(tmp_path / "origin", *numbers, documents=50)
    (origin / REVISION).write_text(f"{COMMIT}\n")
    files = {path.name: path for path in sorted(origin.glob("*.parquet"))}
    with HubServer({address(dataset, name): path for name, path in files.items()}) as server:
        offline = {"streaming": False, "data_dir": str(origin)}
        streamed = {"streaming": True, "endpoint": server.endpoint, "max_cached_shards": 2}
        settings = {**NEW_MODEL, "dataset": dataset.name, "num_shards": shards}
        settings |= streamed if streaming else offline
        counts = KilledRuns(tmp_path, settings, undisturbed=offline).kill(kills=6, seed=2)
    assert counts["kills"] == 6
    ended = read_trainer(store.directory(Home(tmp_path / "straight").runs / "run", 16))
    assert ended.revision == COMMIT
    assert ended.fingerprints == {name: fingerprint(path) for name, path in files.items()}


def test_a_run_killed_while_it_draws_answers_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    counts = KilledRuns(tmp_path, killed_settings(tmp_path), kind=Reinforcement).kill(10, seed=3)
    assert counts["kills"] == 10
