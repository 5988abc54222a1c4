"""The plan against nanochat's own numbers for every depth, and what cannot work."""

import pytest
from conftest import golden
from pydantic import ValidationError

from mlxchat.errors import MlxchatError
from mlxchat.model.arithmetic import (
    ScoresHeld,
    activation_bytes,
    parameters,
    training_bytes,
)
from mlxchat.model.config import GPTConfig
from mlxchat.train.plan import Capacity, Plan, plan
from mlxchat.train.settings import LARGEST_CONTEXT, PretrainConfig

GIB, MIB = 1024**3, 1024**2
SMALL = Capacity(GIB, 4, "all", 128)
LARGE = Capacity(64 * GIB, 2, "none", 1024)


def assert_planned(made: Plan, expected: dict) -> None:
    """What the golden plans of both architectures have in common."""
    assert made.model.n_embd == expected["n_embd"]
    assert made.model.n_head == expected["n_head"]
    assert made.flops_per_token == expected["flops_per_token"]
    assert made.target_tokens == expected["target_tokens"]
    assert made.tokens_per_step == expected["total_batch_size"]
    assert made.num_iterations == expected["num_iterations"]
    assert made.learning_rates == pytest.approx(expected["lr"], rel=1e-6)
    assert made.device_batch_size * made.accumulation * 2048 == made.tokens_per_step


@pytest.mark.parametrize("expected", golden("plans.json")["classic"], ids=lambda p: p["depth"])
def test_classic_plans_are_nanochats(expected: dict) -> None:
    made = plan(PretrainConfig(depth=expected["depth"]), 65_536, LARGE)
    assert_planned(made, expected)
    assert made.parameters == expected["params"]
    assert parameters(made.model) == {k: expected[k] for k in ("wte", "lm_head", "matrices")}
    assert (made.weight_decay, made.grad_clip, made.warmup_steps) == (0.0, 1.0, 0)
    assert (made.warmdown_ratio, made.final_lr_frac) == (0.2, 0.0)


@pytest.mark.parametrize("expected", golden("plans.json")["modern"], ids=lambda p: p["depth"])
def test_modern_plans_are_nanochats(expected: dict) -> None:
    made = plan(PretrainConfig(depth=expected["depth"], arch="modern"), 32_768, LARGE)
    assert_planned(made, expected)
    counts = dict(expected["params"])
    assert made.parameters == counts.pop("total")
    counts["matrices"] = counts.pop("transformer_matrices")
    assert parameters(made.model) == counts
    assert list(made.model.windows) == expected["window_sizes"]
    assert made.weight_decay == pytest.approx(expected["weight_decay"], rel=1e-6)
    by_batch = made.learning_rates["x0"] / 0.5
    assert by_batch == pytest.approx(expected["batch_lr_scale"], rel=1e-6)
    assert (made.grad_clip, made.warmup_steps) == (0.0, 40)
    assert (made.warmdown_ratio, made.final_lr_frac) == (0.65, 0.05)


def test_a_given_number_of_steps_leaves_the_modern_weight_decay() -> None:
    derived = plan(PretrainConfig(depth=4, arch="modern"), 32_768, LARGE)
    short = plan(PretrainConfig(depth=4, arch="modern", num_iterations=10), 32_768, LARGE)
    assert short.num_iterations == 10
    assert short.model_copy(update={"num_iterations": derived.num_iterations}) == derived


def test_a_given_batch_scales_the_modern_rates() -> None:
    config = PretrainConfig(depth=4, arch="modern", total_batch_size=2**17, scalar_lr=1.0)
    made = plan(config, 32_768, LARGE)
    assert made.tokens_per_step == 2**17
    assert made.learning_rates["matrix"] == pytest.approx(0.02 / 2)
    assert made.learning_rates["x0"] == pytest.approx(1 / 2)
    assert made.learning_rates["resid"] == pytest.approx(0.01 / 2)
    assert made.learning_rates["smear"] == 0.2


def test_more_memory_allows_larger_batches() -> None:
    sizes = [
        plan(
            PretrainConfig(depth=12), 65_536, Capacity(memory * GIB, 2, "none", 1024)
        ).device_batch_size
        for memory in (4, 16, 64, 1000)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == 32


def test_batch_sizes_that_do_not_divide_name_those_that_do() -> None:
    config = PretrainConfig(depth=4, total_batch_size=12_288, max_seq_len=2048, device_batch_size=4)
    with pytest.raises(MlxchatError, match="12,288 tokens is not a multiple of 4 rows") as raised:
        plan(config, 1024, SMALL)
    assert raised.value.remedy == "Use --device-batch-size 1, 2, 3, 6."
    config = PretrainConfig(depth=4, total_batch_size=10_000, max_seq_len=2048, device_batch_size=2)
    with pytest.raises(MlxchatError) as raised:
        plan(config, 1024, SMALL)
    assert raised.value.remedy == "Use --total-batch-size 8192 or 12288."


def test_a_batch_that_is_no_whole_row() -> None:
    config = PretrainConfig(depth=4, total_batch_size=5000, device_batch_size=1)
    with pytest.raises(MlxchatError, match="not a multiple of a row's 2,048 tokens") as raised:
        plan(config, 1024, SMALL)
    assert raised.value.remedy == "Use --total-batch-size 4096 or 6144."


def test_the_smallest_model_takes_a_row_of_the_longest_context() -> None:
    config = PretrainConfig(depth=1, arch="modern", head_dim=64, max_seq_len=LARGEST_CONTEXT)
    assert plan(config, 265, LARGE).tokens_per_step == LARGEST_CONTEXT


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_a_horizon_of_no_step_is_refused(arch: str) -> None:
    for ratio in (0.1, 1e-3):
        config = PretrainConfig(depth=1, arch=arch, target_param_data_ratio=ratio)
        with pytest.raises(MlxchatError, match="less than one step"):
            plan(config, 265, SMALL)


def test_a_depth_that_heads_cannot_share_names_its_neighbours() -> None:
    with pytest.raises(MlxchatError, match="depth of 5 makes a width of 320") as raised:
        plan(PretrainConfig(depth=5), 1024, SMALL)
    assert raised.value.remedy == "Use --depth 4 or 6, or another --head-dim."
    assert plan(PretrainConfig(depth=5, head_dim=64), 1024, SMALL).model.n_head == 5
    assert plan(PretrainConfig(depth=5, arch="modern"), 1024, SMALL).model.n_embd == 384


def test_a_head_dimension_that_never_works() -> None:
    with pytest.raises(MlxchatError, match="shared out among heads of 3") as raised:
        plan(PretrainConfig(depth=4, head_dim=3), 1024, SMALL)
    assert raised.value.remedy == "Use another --head-dim."
    with pytest.raises(MlxchatError, match="--head-dim 63 is odd") as raised:
        plan(PretrainConfig(depth=4, arch="modern", head_dim=63), 1024, SMALL)
    assert raised.value.remedy == "Use an even --head-dim."


def test_a_modern_width_that_the_smear_cannot_read() -> None:
    def narrow(arch: str) -> GPTConfig:
        return GPTConfig(arch=arch, n_embd=16, n_head=1, n_kv_head=1)

    assert narrow("classic").n_embd == 16
    with pytest.raises(ValidationError, match="n_embd 16 is less than the 24 channels"):
        narrow("modern")


def test_a_model_that_the_machine_cannot_hold() -> None:
    with pytest.raises(
        MlxchatError, match=r"takes more than 6\.\d GiB; this machine has 1\.0 GiB"
    ) as raised:
        plan(PretrainConfig(depth=20), 65_536, SMALL)
    assert "--depth" in raised.value.remedy


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_the_summary_is_a_line_with_every_rate(arch: str) -> None:
    made = plan(PretrainConfig(depth=4, arch=arch), 1024, LARGE)
    line = made.summary()
    assert "\n" not in line
    assert arch in line
    assert f"{made.parameters:,} parameters" in line
    assert all(f"{rate:.3g} {group}" in line for group, rate in made.learning_rates.items())


@pytest.mark.parametrize(
    ("arch", "depth", "vocabulary", "rows", "context", "measured"),
    [
        ("classic", 2, 1024, 16, 128, 125),
        ("classic", 4, 4096, 8, 512, 602),
        ("modern", 4, 4096, 8, 512, 677),
        ("classic", 4, 65_536, 4, 512, 1502),
        ("classic", 6, 65_536, 4, 512, 2196),
        ("classic", 12, 65_536, 1, 512, 4992),
    ],
)
def test_memory_is_about_what_was_measured(
    arch: str, depth: int, vocabulary: int, rows: int, context: int, measured: int
) -> None:
    """Peaks in MiB as benchmarks/memory.py finds them: float32, a CPU, two micro-batches a step."""
    model = GPTConfig.from_depth(depth, vocabulary, context, arch=arch)
    needed = training_bytes(model, rows, 2, 4, "all", 128)
    assert needed["peak"] / MIB == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("arch", "value_bytes", "measured"),
    [("classic", 4, 27.6), ("classic", 2, 16.0), ("modern", 4, 31.8), ("modern", 2, 19.6)],
)
def test_activations_are_about_what_was_measured(
    arch: str, value_bytes: int, measured: float
) -> None:
    """MB of a row of 256 tokens, on a CPU."""
    model = GPTConfig.from_depth(4, 4096, 256, arch=arch)
    held = activation_bytes(model, value_bytes, "all")
    assert held / 1e6 == pytest.approx(measured, rel=0.05)


def test_only_layers_whose_attention_is_not_fused_hold_scores() -> None:
    def scores(model: GPTConfig, held: ScoresHeld) -> int:
        return activation_bytes(model, 2, held) - activation_bytes(model, 2, "none")

    modern = GPTConfig.from_depth(4, 1024, 2048, arch="modern")  # SSSL
    each = 2048 * 1.25 * 2 * modern.n_head * 2048
    assert scores(modern, "windows") == 3 * each
    assert scores(modern, "all") == 4 * each
    short = GPTConfig.from_depth(4, 1024, 128, arch="modern")  # no longer than a window
    assert scores(short, "windows") == 0
    assert scores(GPTConfig.from_depth(4, 1024, 2048), "windows") == 0


def test_memory_by_component() -> None:
    model = GPTConfig.from_depth(4, 1024, 256, arch="modern")
    one, two = (training_bytes(model, 4, n, 4, "all", 128) for n in (1, 2))
    counts = parameters(model)
    assert one["parameters"] == one["gradients"] == 4 * sum(counts.values())
    adamw = sum(counts.values()) - counts["matrices"]
    assert one["optimizer"] == pytest.approx(8 * adamw + 4 * counts["matrices"], rel=0.02)
    assert "accumulation" not in one
    assert two["accumulation"] == two["parameters"]
    assert training_bytes(model, 8, 2, 4, "all", 128)["activations"] > two["activations"]
