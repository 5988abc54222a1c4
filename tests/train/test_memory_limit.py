"""A whole run keeps to its memory limit and learns the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.memory import memory_held

from mlxchat import runtime
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated, Noted, Saved, Started, Stepped
from mlxchat.train.pretrain import run_pretraining

MIB = 1024**2
RUN = {
    "dataset": "builtin",
    "depth": 2,
    "head_dim": 64,
    "vocab_size": 300,
    "max_seq_len": 64,
    "total_batch_size": 32 * 64,
    "num_iterations": 3,
    "eval_every": 3,
    "eval_tokens": 32 * 64,
    "sample_every": 3,
}


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Restore the limits of MLX afterwards."""
    before = mx.set_memory_limit(2**40), mx.set_cache_limit(0)
    yield
    mx.set_memory_limit(before[0])
    mx.set_cache_limit(before[1])


def trained(home: Path, **settings: object) -> tuple[list[float], int, Started]:
    """Return losses and bits per byte, the peak of MLX's memory, and the first event."""
    before, learnt, started = memory_held(), list[float](), None
    config = PretrainConfig.model_validate(RUN | settings)
    for event in run_pretraining(config, Home(home), lambda _: None):
        if isinstance(event, Stepped):
            learnt.append(event.loss)
        elif isinstance(event, Evaluated):
            learnt.append(event.bits_per_byte)
        elif isinstance(event, Started):
            started = event
    assert started
    return learnt, mx.get_peak_memory() - before, started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one home for all runs, so that they share a tokenizer."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "shares"),
    [("classic", (0.5, 1.0, 2.0)), ("modern", (0.5,))],
    ids=["classic", "modern"],
)
def test_training_stays_within_the_limit_and_learns_the_same(
    shared: Path, arch: str, shares: tuple[float, ...]
) -> None:
    expected, peak, started = trained(shared, arch=arch, model_tag=f"{arch}-free")
    assert started.estimated_memory == pytest.approx(peak, rel=0.3)
    for share in shares:
        tag, limit = f"{arch}-{share}", f"{share * peak / MIB:.1f}MiB"
        learnt, taken, _ = trained(shared, arch=arch, model_tag=tag, memory_limit=limit)
        assert learnt == pytest.approx(expected, rel=1e-4)
        assert taken <= share * peak


@pytest.mark.slow
def test_a_run_resumes_within_another_limit(shared: Path) -> None:
    expected, peak, _ = trained(shared, model_tag="straight", num_iterations=4)
    steps = {"model_tag": "cut", "num_iterations": 4, "save_every": 1}
    events = run_pretraining(
        PretrainConfig.model_validate(RUN | steps), Home(shared), lambda _: None
    )
    for event in events:
        if isinstance(event, Saved):
            events.close()
    limit = f"{peak / 2 / MIB:.0f}MiB"
    config = PretrainConfig.model_validate(RUN | steps | {"memory_limit": limit})
    seen = list(run_pretraining(config, Home(shared), lambda _: None))
    assert any("Micro-batching changed" in event.text for event in seen if isinstance(event, Noted))
    losses = [event.loss for event in seen if isinstance(event, Stepped)]
    assert losses[-1] == pytest.approx(expected[-2], rel=1e-4)


def test_the_buffer_cache_stays_within_the_limit() -> None:
    memory = runtime.machine().memory
    assert runtime.cache_limit() == min(memory // 4, runtime.LARGEST_CACHE)
    assert runtime.cache_limit(100 * MIB, 70 * MIB) <= 100 * MIB
    assert runtime.cache_limit(100 * MIB, 170 * MIB) <= 100 * MIB


CHIPS = {
    "cpu": runtime.Machine("cpu", "a chip", mx.float32, None, 32 * runtime.GIB),
    "metal": runtime.Machine("metal", "Apple M3 Pro", mx.bfloat16, None, 27 * runtime.GIB),
}


@pytest.mark.parametrize(
    ("free", "spare"), [(20, 18), (64, 27), (2, 1.8)], ids=["busy", "idle", "full"]
)
def test_what_a_mac_can_spare_follows_what_is_free(
    free: int, spare: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most what its system recommends, which does not fall when other programs take memory."""
    monkeypatch.setattr(runtime, "machine", lambda: CHIPS["metal"])
    monkeypatch.setattr("mlxchat.system.free_memory", lambda: free * runtime.GIB)
    assert runtime.spare_memory() == int(spare * runtime.GIB)


def test_a_gpu_has_room_over_the_estimate_to_keep_buffers_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held to the very peak it would give them back in each step, to ask for them again."""
    gib = runtime.GIB
    set_to: dict[str, int] = {}
    for name in ("memory", "cache", "wired"):
        limit = f"set_{name}_limit"
        monkeypatch.setattr(mx, limit, lambda size, name=name: set_to.__setitem__(name, size))

    def held(chip: str, limit: int, peak: int, wired: runtime.Wired | None = None) -> dict:
        set_to.clear()
        monkeypatch.setattr(runtime, "machine", lambda: CHIPS[chip])
        monkeypatch.setattr(runtime, "check_limits", lambda *_: None)
        runtime.hold_memory(limit, peak, wired)
        return dict(set_to)

    room = int(11 * gib) + gib // 2
    assert held("metal", 20 * gib, 10 * gib) == {"memory": room, "cache": room}
    assert runtime.cache_at_peak(20 * gib, 10 * gib) == room - 10 * gib
    assert held("metal", 11 * gib, 10 * gib) == {"memory": 11 * gib, "cache": 11 * gib}
    assert held("cpu", 20 * gib, 10 * gib) == {"memory": 10 * gib, "cache": 4 * gib}
    assert held("cpu", 11 * gib, 10 * gib) == {"memory": 10 * gib, "cache": gib}
    assert held("metal", 20 * gib, 10 * gib, 12 * gib)["wired"] == 12 * gib
    assert held("metal", 20 * gib, 10 * gib, "auto")["wired"] == 10 * gib + 4 * 10**9
    assert held("metal", 27 * gib, 25 * gib, "auto")["wired"] == 27 * gib


def test_impossible_limits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.check_limits(runtime.spare_memory(), None)
    with pytest.raises(MlxchatError, match=r"is 1,073\.7 TB; this machine has"):
        runtime.check_limits(10**6 * runtime.GIB, None)
    monkeypatch.setattr(runtime, "machine", lambda: CHIPS["cpu"])
    for wired in (MIB, "auto"):
        with pytest.raises(MlxchatError, match="`wired_limit` only works on Macs"):
            runtime.check_limits(MIB, wired)
    monkeypatch.setattr(runtime, "machine", lambda: CHIPS["metal"])
    for wired in (8 * runtime.GIB, "auto"):
        runtime.check_limits(MIB, wired)
    with pytest.raises(MlxchatError, match=r"`wired_limit` is 32\.2 GB; .* 29\.0 GB") as raised:
        runtime.check_limits(MIB, 30 * runtime.GIB)
    assert "iogpu.wired_limit_mb" in raised.value.remedy
