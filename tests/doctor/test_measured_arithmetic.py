"""What is computed is right here, and each kind of wrong arithmetic is found."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.backends import use_backend
from support.planted_host import HEALTHY, PlantedHost

from mlxchat import autotune
from mlxchat.doctor import measured_arithmetic, measured_device, measured_training
from mlxchat.doctor.examination import CHECKS, judge
from mlxchat.doctor.probes import Measurement
from mlxchat.engine.cache import KVLayer
from mlxchat.model import norm
from mlxchat.model.norm import Pair
from mlxchat.optim.gradients import Accumulate, compile_gradients
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.runtime import machine, mx

ALL = {check.name: check for checks in CHECKS.values() for check in checks}
ON_CPU = pytest.mark.skipif(machine().backend != "cpu", reason="the sizes are those of CPUs")


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """Compiling takes seconds, and computes nothing else."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def gradients() -> Measurement:
    return measured_arithmetic.compare_gradients("classic", positions=16, vocab_size=32)


def modern() -> Measurement:
    return measured_arithmetic.compare_gradients("modern", positions=16, vocab_size=32)


def attention() -> Measurement:
    return measured_arithmetic.time_attention((1, 2, 32, 16))


def decoding() -> Measurement:
    return measured_arithmetic.compare_decoding(read=20, decoded=4)


def steps() -> Measurement:
    return measured_training.take_steps(count=5, depth=1)


def rounding() -> Measurement:
    return measured_arithmetic.round_products(rows=8, inner=64)


def outcome(name: str, measured: Measurement, root: Path) -> str:
    """The outcome of a check on what was measured."""
    planted = {key: measured for key, healthy in HEALTHY.items() if type(healthy) is type(measured)}
    return judge(ALL[name], PlantedHost(root, planted)).outcome


MEASUREMENTS = [
    ("rounding", rounding),
    ("rotation", measured_arithmetic.compare_rotation),
    ("gradients", gradients),
    ("modern gradients", modern),
    ("attention", attention),
    ("decoding", decoding),
    ("compiler", measured_device.compile_kernel),
    ("learning", steps),
]


@pytest.mark.parametrize(("name", "measure"), MEASUREMENTS, ids=[name for name, _ in MEASUREMENTS])
def test_this_machine_computes_right(
    name: str, measure: Callable[[], Measurement], tmp_path: Path
) -> None:
    assert outcome(name, measure(), tmp_path) == "ok"


def test_wrong_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mx.array.__matmul__

    def garbage(a: mx.array, b: mx.array) -> mx.array:
        return right(a, b) * (2 if a.dtype == mx.bfloat16 else 1)

    monkeypatch.setattr(mx.array, "__matmul__", garbage)
    assert outcome("rounding", rounding(), tmp_path) == "failed"


def test_a_rotation_that_reads_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_arithmetic, "apply_rope", lambda x, rope: 1.0 * x)
    assert outcome("rotation", measured_arithmetic.compare_rotation(), tmp_path) == "failed"


def test_the_cpu_computes_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def kernel(x: mx.array) -> Pair:
        used.append(on_cpu)
        return norm.norm(x), x

    def switch(device: mx.Device) -> None:
        nonlocal on_cpu
        on_cpu = not on_cpu

    on_cpu = False
    monkeypatch.setattr(norm, "_norm_kernel", kernel)
    monkeypatch.setattr(mx, "set_default_device", switch)
    use_backend("metal", monkeypatch)
    with autotune.fixed(norm="kernel", loss="formula"):
        gradients()
    assert used and not any(used)


def test_gradients_off_by_a_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(model: object) -> Accumulate:
        right = compile_gradients(model)

        def accumulate(*arguments: object) -> object:
            loss, computed = right(*arguments)
            return loss, {**computed, "lm_head.weight": 1.01 * computed["lm_head.weight"]}

        return accumulate

    monkeypatch.setattr(measured_arithmetic, "compile_gradients", off)
    found = gradients()
    assert found.where == "lm_head.weight" and found.value == pytest.approx(0.01, rel=0.01)
    assert outcome("gradients", found, tmp_path) == "failed"


def test_attention_that_sees_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        measured_arithmetic,
        "causal_attention",
        lambda q, k, v, scale, window: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale),
    )
    assert outcome("attention", attention(), tmp_path) == "failed"


def test_a_cache_that_loses_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = KVLayer.make_room

    def make_room(layer: KVLayer, T: int) -> None:
        right(layer, T)
        if T == 1:
            layer._missing = np.full(1, 4, np.int32)

    monkeypatch.setattr(KVLayer, "make_room", make_room)
    assert outcome("decoding", decoding(), tmp_path) == "failed"


def test_a_kernel_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "compile", lambda function: lambda x: function(x) + 1e-3)
    assert outcome("compiler", measured_device.compile_kernel(), tmp_path) == "failed"


def test_updates_that_do_not_reach_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MuonAdamW, "update", lambda *_: mx.array(1.0))
    assert outcome("learning", steps(), tmp_path) == "failed"


def test_nan_is_the_largest_difference() -> None:
    exact = np.ones(3)
    assert measured_arithmetic._relative(np.array([1, np.nan, 1]), exact) == float("inf")
    assert measured_arithmetic._relative(exact, exact) == 0


@ON_CPU
def test_speeds_and_the_device_are_measured() -> None:
    speeds = measured_arithmetic.time_products(seconds=0.001)
    assert min(dict(speeds).values()) > 0
    device = measured_device.describe_device()
    assert (device.backend, device.compute_dtype) == ("cpu", "float32")
    load = measured_device.work_without_pause(seconds=0.001, width=8, products=2)
    assert load.seconds >= load.longest > 0
