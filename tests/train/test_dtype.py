"""The precision of activations: chosen for this machine, or as the user says."""

from pathlib import Path

import pytest
from support.cases import Case
from support.runs import CONFIG, final, run

from mlxchat import runtime
from mlxchat.engine.generate import continue_greedily
from mlxchat.errors import ConfigError
from mlxchat.model.gpt import GPT
from mlxchat.runtime import compute_dtype, machine, mx
from mlxchat.train.measure import resources


@pytest.mark.parametrize(
    ("device", "float32", "chosen"),
    [
        ("Apple M1", 2.0, mx.float32),
        ("Apple M2 Max", 1.2, mx.float32),
        ("Apple M2 Max", 1.05, mx.bfloat16),  # not worth twice the memory
        ("Apple M3", 2.0, mx.bfloat16),  # known to compute with it: not measured
        ("NVIDIA H200", 2.0, mx.bfloat16),
        ("NVIDIA GeForce RTX 2060", 1.5, mx.float32),
        ("Apple M9", 0.5, mx.bfloat16),
    ],
)
def test_a_gpu_computes_in_bfloat16_unless_float32_is_clearly_faster(
    device: str, float32: float, chosen: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {mx.float32: float32, mx.bfloat16: 1.0}
    monkeypatch.setattr(runtime, "matmul_flops", lambda seconds, dtype: speeds[dtype])
    assert runtime._gpu_dtype(device) == chosen


def test_a_setting_names_the_dtype() -> None:
    assert compute_dtype("auto") == machine().compute_dtype
    assert compute_dtype("float16") == mx.float16
    with pytest.raises(ConfigError, match="no `dtype` 'float8'"):
        compute_dtype("float8")


def test_memory_is_planned_for_the_dtype() -> None:
    assert [resources(name).value_bytes for name in ("float32", "bfloat16")] == [4, 2]


def test_a_run_is_resumed_in_another_precision(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[mx.Dtype] = []
    features = GPT.features

    def watched(model: GPT, *positional: object, **keywords: object) -> mx.array:
        x = features(model, *positional, **keywords)  # type: ignore[arg-type]
        seen.append(x.dtype)
        return x

    monkeypatch.setattr(GPT, "features", watched)
    first = CONFIG.model_copy(update={"dtype": "bfloat16", "eval_every": 0})
    run(prepared, first, stop_at=6)
    assert set(seen) == {mx.bfloat16}
    seen.clear()
    run(prepared, first.model_copy(update={"dtype": "float32"}))
    assert set(seen) == {mx.float32}
    weights = {name: w for name, w in final(prepared).items() if name.startswith("model")}
    assert {weight.dtype for weight in weights.values()} == {mx.float32}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_model_answers_in_less_precision(case: Case, dtype: mx.Dtype) -> None:
    config, parameters = case.config, case.model().named_parameters()
    model = GPT(config, dtype)
    model.load_weights(list(parameters.items()))
    model.prepare_for_inference()
    logits, expected = model(case.io["ids"]), case.io["logits"]
    assert (model.dtype, logits.dtype) == (dtype, mx.float32)
    tolerance = 0.02 if dtype == mx.float16 else 0.2
    assert mx.allclose(logits, expected, atol=tolerance * mx.abs(expected).max().item())
    [tokens] = continue_greedily(model, [[1, 2, 3]], frozenset(), 8)
    assert len(tokens) == 8
