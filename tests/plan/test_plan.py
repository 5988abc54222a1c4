"""Plans equal nanochat's at every depth, and impossible settings are refused."""

import pytest
from pydantic import ValidationError
from support.cases import golden

from mlxchat.config.pretrain import LARGEST_CONTEXT, PretrainConfig
from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import parameters
from mlxchat.plan.memory import AdapterPlan, Resources
from mlxchat.plan.plan import Plan, plan, refitted

GIB = 1024**3
SMALL = Resources(8 * GIB, 4, "all", 128)
LARGE = Resources(1024 * GIB, 2, "none", 1024)


def assert_planned(made: Plan, expected: dict) -> None:
    """Compare what the golden plans of both architectures have in common."""
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


def test_a_given_number_of_steps_does_not_change_the_modern_weight_decay() -> None:
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


def test_an_error_for_an_impossible_batch_size_names_possible_ones() -> None:
    config = PretrainConfig(depth=4, total_batch_size=12_288, max_seq_len=2048, device_batch_size=4)
    with pytest.raises(MlxchatError, match="12,288 tokens is not a multiple of 4 rows") as raised:
        plan(config, 1024, SMALL)
    assert raised.value.remedy == "Use `device_batch_size` 1, 2, 3, 6."
    config = PretrainConfig(depth=4, total_batch_size=10_000, max_seq_len=2048, device_batch_size=2)
    with pytest.raises(MlxchatError) as raised:
        plan(config, 1024, SMALL)
    assert raised.value.remedy == "Use `total_batch_size` 8192 or 12288."


def test_a_batch_that_is_not_whole_rows_is_refused() -> None:
    config = PretrainConfig(depth=4, total_batch_size=5000, device_batch_size=1)
    with pytest.raises(MlxchatError, match="not a multiple of a row's 2,048 tokens") as raised:
        plan(config, 1024, SMALL)
    assert raised.value.remedy == "Use `total_batch_size` 4096 or 6144."


def test_the_smallest_model_can_have_the_longest_context() -> None:
    config = PretrainConfig(depth=1, arch="modern", head_dim=64, max_seq_len=LARGEST_CONTEXT)
    assert plan(config, 265, LARGE).tokens_per_step == LARGEST_CONTEXT


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_a_horizon_shorter_than_a_step_is_refused(arch: str) -> None:
    for ratio in (0.1, 1e-3):
        config = PretrainConfig(depth=1, arch=arch, target_param_data_ratio=ratio)
        with pytest.raises(MlxchatError, match="less than one step"):
            plan(config, 265, SMALL)


def test_an_error_for_an_impossible_depth_names_its_neighbours() -> None:
    with pytest.raises(MlxchatError, match="depth of 5 gives a width of 320") as raised:
        plan(PretrainConfig(depth=5), 1024, SMALL)
    assert raised.value.remedy == "Use `depth` 4 or 6, or another `head_dim`."
    assert plan(PretrainConfig(depth=5, head_dim=64), 1024, SMALL).model.n_head == 5
    assert plan(PretrainConfig(depth=5, arch="modern"), 1024, SMALL).model.n_embd == 384


def test_an_impossible_head_dimension_is_refused() -> None:
    with pytest.raises(MlxchatError, match="divided into heads of width 3") as raised:
        plan(PretrainConfig(depth=4, head_dim=3), 1024, SMALL)
    assert raised.value.remedy == "Use another `head_dim`."
    with pytest.raises(MlxchatError, match="`head_dim=63` is odd") as raised:
        plan(PretrainConfig(depth=4, arch="modern", head_dim=63), 1024, SMALL)
    assert raised.value.remedy == "Use an even `head_dim`."


def test_a_modern_width_too_small_for_the_smear_is_refused() -> None:
    def narrow(arch: str) -> GPTConfig:
        return GPTConfig(arch=arch, n_embd=16, n_head=1, n_kv_head=1)

    assert narrow("classic").n_embd == 16
    with pytest.raises(ValidationError, match="n_embd 16 is less than the 24 channels"):
        narrow("modern")


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_the_summary_is_a_line_with_every_rate(arch: str) -> None:
    made = plan(PretrainConfig(depth=4, arch=arch), 1024, LARGE)
    line = made.summary()
    assert "\n" not in line
    assert arch in line
    assert f"{made.parameters:,} parameters" in line
    assert all(f"{rate:.3g} {group}" in line for group, rate in made.learning_rates.items())
    assert ("no weight decay" in line) == (arch == "classic")
    adapter = AdapterPlan(parameters=1234, frozen=10**6, layers=4)
    assert (
        "AdamW trains an adapter of 1,234" in made.model_copy(update={"adapter": adapter}).summary()
    )


@pytest.mark.parametrize("rows", [5, 100])
def test_a_saved_run_refuses_a_batch_size_that_does_not_divide_its_step(rows: int) -> None:
    config = PretrainConfig(depth=2, max_seq_len=64, total_batch_size=2048)
    made = plan(config, 512, SMALL)
    with pytest.raises(MlxchatError, match=f"not a multiple of {rows} rows"):
        refitted(made, config.model_copy(update={"device_batch_size": rows}), SMALL)


def test_a_plan_that_an_earlier_version_saved_is_read() -> None:
    made = plan(PretrainConfig(depth=2, max_seq_len=64, total_batch_size=2048), 512, SMALL)
    saved = made.model_dump(mode="json", exclude={"chunk_rows", "memory_limit", "peak"})
    read = Plan.model_validate(saved | {"loss_rows": made.chunk_rows})
    assert read.division == made.division
    assert refitted(read, PretrainConfig(), SMALL) == made
    assert Plan.model_validate(made.model_dump(mode="json")) == made
