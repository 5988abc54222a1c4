"""Runs killed by SIGKILL at random moments; `benchmarks/kills.py` is the long form."""

from pathlib import Path

import pytest
from support.hub_server import COMMIT, HubServer, address
from support.killed_runs import KilledRuns
from support.rl_runs import killed_settings, train_by_rewards
from support.runs import few

from mlxchat.checkpoint import store
from mlxchat.data.fingerprint import fingerprint
from mlxchat.data.shards import DATASETS, REVISION
from mlxchat.home import Home
from mlxchat.train.rl import Reinforcement
from mlxchat.train.stage import read_trainer

pytestmark = pytest.mark.slow


def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    counts = KilledRuns(tmp_path, {}).kill(kills=38, seed=1)
    assert counts["kills"] == 38
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
        settings = {"dataset": dataset.name, "num_shards": shards}
        settings |= streamed if streaming else offline
        counts = KilledRuns(tmp_path, settings, undisturbed=offline).kill(kills=6, seed=2)
    assert counts["kills"] == 6
    ended = read_trainer(store.directory(Home(tmp_path / "straight").runs / "run", 16))
    assert ended.revision == COMMIT
    assert ended.fingerprints == {name: fingerprint(path) for name, path in files.items()}


def test_a_run_killed_while_it_draws_answers_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    settings = killed_settings(tmp_path)
    runs = KilledRuns(tmp_path, settings, train=train_by_rewards, stage=Reinforcement.name)
    counts = runs.kill(kills=10, seed=3)
    assert counts["kills"] == 10
