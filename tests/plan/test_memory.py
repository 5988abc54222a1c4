"""The estimate of the memory that training takes."""

import pytest

from mlxchat.model.adapter import LoraConfig, adapter_parameters
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import add_adapter
from mlxchat.model.size import LARGEST_ARRAY, chunk_size, parameters
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.memory import (
    AdapterPlan,
    BatchPlan,
    Resources,
    ScoresHeld,
    activation_bytes,
    training_bytes,
)
from mlxchat.runtime import mx

GB = 10**9
CPU = Resources(memory=0, value_bytes=4, scores_held="all", chunk_rows=128)


def estimated(model: GPTConfig, rows: int, accumulation: int, **batch: int) -> dict[str, int]:
    division = BatchPlan(device_batch_size=rows, accumulation=accumulation, **batch)
    return training_bytes(model, division, CPU)


def on_a_gpu(held: ScoresHeld) -> Resources:
    return CPU._replace(value_bytes=2, scores_held=held)


@pytest.mark.parametrize(
    ("arch", "depth", "vocabulary", "rows", "plain", "checkpointing"),
    [
        ("classic", 4, 4096, 8, 0.531, 0.255),
        ("modern", 4, 4096, 8, 0.599, 0.323),
        ("classic", 4, 65_536, 4, 1.117, 0.949),
        ("classic", 6, 65_536, 4, 1.814, 1.392),
        ("classic", 12, 4096, 1, 1.727, 1.518),
        ("classic", 12, 65_536, 1, 3.807, 3.426),
    ],
)
def test_estimated_memory_is_close_to_the_measured(
    arch: str, depth: int, vocabulary: int, rows: int, plain: float, checkpointing: float
) -> None:
    """Peaks in GB as benchmarks/memory.py measures them: float32, a CPU, rows of 512 tokens, two
    micro-batches a step.
    """
    model = GPTConfig.from_depth(depth, vocabulary, 512, arch=arch)
    for checkpoint, measured in ((False, plain), (True, checkpointing)):
        needed = estimated(model, rows, 2, grad_checkpoint=checkpoint)
        assert needed["peak"] / GB == pytest.approx(measured, rel=0.06)


def test_memory_is_estimated_by_component() -> None:
    model = GPTConfig.from_depth(4, 1024, 256, arch="modern")
    counts = parameters(model)
    one, two = (estimated(model, 4, n) for n in (1, 2))
    assert one["parameters"] == one["gradients"] == 4 * sum(counts.values())
    adamw = sum(counts.values()) - counts["matrices"]
    assert one["optimizer"] == pytest.approx(8 * adamw + 4 * counts["matrices"], rel=0.02)
    assert "accumulation" not in one
    assert two["accumulation"] == 4 * counts["lm_head"]
    assert two["peak"] > one["peak"] > one["parameters"] + one["optimizer"] + one["activations"]
    more = estimated(model, 8, 2)
    assert more["activations"] > two["activations"]
    coarse, fine = (estimated(model, 16, 2, chunk_rows=rows) for rows in (4096, 128))
    assert coarse["logits"] == 2 * fine["logits"]  # of 4,096 positions, and of 2^21 logits
    assert coarse["activations"] == fine["activations"]


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_checkpointing_keeps_one_array_per_layer(arch: str) -> None:
    def held(depth: int, checkpoint: bool) -> float:
        model = GPTConfig(arch=arch, n_layer=depth, sequence_len=128)
        width = model.n_embd * model.sequence_len * 2
        return activation_bytes(model, on_a_gpu("none"), checkpoint=checkpoint) / width

    assert held(13, True) - held(12, True) == 1
    assert held(13, False) - held(12, False) >= 14
    assert held(1, True) == pytest.approx(held(1, False) + 1)


def test_only_layers_without_fused_attention_keep_scores() -> None:
    def of_a_layer(model: GPTConfig, held: ScoresHeld) -> int:
        deeper = model.model_copy(update={"n_layer": model.n_layer + 1})
        taken = activation_bytes(deeper, on_a_gpu(held)) - activation_bytes(model, on_a_gpu(held))
        fused = activation_bytes(deeper, on_a_gpu("none")) - activation_bytes(
            model, on_a_gpu("none")
        )
        return (taken - fused) // (2 * model.n_head)

    windowed = GPTConfig.from_depth(4, 1024, 2048, arch="modern", window_pattern="S")
    assert of_a_layer(windowed, "windows") == 256 * (256 + 512 + 6 * 768)
    short = GPTConfig.from_depth(4, 1024, 128, arch="modern", window_pattern="S")
    classic = GPTConfig.from_depth(4, 1024, 2048)
    assert of_a_layer(short, "windows") == of_a_layer(classic, "windows") == 0
    # On CPUs the MLP's input, four times as wide, is held too.
    inputs = 4 * 2048 * classic.n_embd // classic.n_head
    blocks = 256 * sum(range(256, 2049, 256))
    assert of_a_layer(classic, "all") == blocks + inputs
    assert of_a_layer(windowed, "all") < of_a_layer(classic, "all")


def test_no_chunk_of_logits_is_too_large_an_array() -> None:
    assert chunk_size(2048, 65_536, 128) == 128
    assert chunk_size(2048, 1024, 128) == 2048
    assert chunk_size(64 * 4096, 65_536, 128) == 4096
    for positions in (2**14, 2**21, 2**26):
        assert chunk_size(positions, 65_536, 2**20) * 65_536 <= LARGEST_ARRAY


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_takes_no_more_than_it_holds(dtype: str) -> None:
    """Frozen weights in the compute dtype, and of the adapter alone gradients and two moments."""
    config = GPTConfig.from_depth(2, 512, 64, arch="modern")
    model = GPT(config, getattr(mx, dtype))
    lora = LoraConfig(rank=4, layers=1, modules=("attn.c_q", "lm_head"))
    add_adapter(model, lora)
    model.cast_frozen()
    own = model.named_trainable()
    held = sum(a.nbytes for name, a in model.named_parameters().items() if name not in own)
    state = sum(a.nbytes for a in MuonAdamW(model).state.values())
    plan = AdapterPlan(parameters=adapter_parameters(config, lora), frozen=held, layers=1)
    resources = CPU._replace(value_bytes=getattr(mx, dtype).size)
    division = BatchPlan(device_batch_size=4, accumulation=2)
    needed = training_bytes(config, division, resources, plan)
    assert needed["frozen"] == pytest.approx(
        sum(parameters(config).values()) * resources.value_bytes, rel=0.01
    )
    assert needed["parameters"] == needed["gradients"] == sum(a.nbytes for a in own.values())
    assert needed["optimizer"] == state - 4  # the number of the step
    assert needed["peak"] < training_bytes(config, division, resources)["peak"]


@pytest.mark.parametrize(("quantized", "measured"), [(True, 0.116404796)])
def test_what_an_adapter_takes_is_close_to_the_measured(quantized: bool, measured: float) -> None:
    """The peak in GB of `python benchmarks/adapters.py synthetic --depth 4 --vocab-size 4096
    --max-seq-len 256 --device-batch-size 2`.
    """
    config = GPTConfig.from_depth(4, 4096, 256)
    lora = LoraConfig().with_head()
    plan = AdapterPlan(
        parameters=adapter_parameters(config, lora),
        frozen=round(0.625 * sum(parameters(config).values())),  # 4 bits, two floats for 64
        layers=4,
        dequantizes=quantized,
    )
    needed = training_bytes(config, BatchPlan(device_batch_size=2, accumulation=1), CPU, plan)
    assert needed["peak"] / GB == pytest.approx(measured, rel=0.1)
