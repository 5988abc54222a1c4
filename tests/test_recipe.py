"""The plan against nanochat's own numbers for every depth, and what cannot work."""

import pytest
from conftest import golden

from mlxchat.errors import MlxchatError
from mlxchat.model.arithmetic import parameters
from mlxchat.train.recipe import Capacity, PretrainConfig, plan

GIB = 1024**3
SMALL = Capacity(GIB, 4, False)


@pytest.mark.parametrize("expected", golden("plans.json")["classic"], ids=lambda p: p["depth"])
def test_plans_are_nanochats(expected: dict) -> None:
    made = plan(PretrainConfig(depth=expected["depth"]), 65_536, Capacity(64 * GIB, 2, True))
    assert made.model.n_embd == expected["n_embd"]
    assert made.model.n_head == expected["n_head"]
    assert made.parameters == expected["params"]
    assert parameters(made.model) == {k: expected[k] for k in ("wte", "lm_head", "matrices")}
    assert made.flops_per_token == expected["flops_per_token"]
    assert made.tokens_per_step == expected["total_batch_size"]
    assert made.num_iterations == expected["num_iterations"]
    rates = {
        "embedding": made.embedding_lr,
        "unembedding": made.unembedding_lr,
        "matrix": made.matrix_lr,
    }
    assert rates == pytest.approx(expected["lr"], rel=1e-6)
    assert made.device_batch_size * made.accumulation * 2048 == made.tokens_per_step


def test_more_memory_allows_larger_batches() -> None:
    sizes = [
        plan(PretrainConfig(depth=12), 65_536, Capacity(memory * GIB, 2, True)).device_batch_size
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


def test_a_horizon_of_no_step_is_refused() -> None:
    config = PretrainConfig(depth=1, target_param_data_ratio=0.1)
    with pytest.raises(MlxchatError, match="less than one step"):
        plan(config, 265, SMALL)


def test_differences_name_what_would_change_the_result() -> None:
    stored = PretrainConfig(depth=4, num_iterations=10).model_dump(mode="json")
    same = PretrainConfig(depth=4, num_iterations=10, save_every=2, eval_every=1, streaming=True)
    assert same.differences(stored) == []
    other = PretrainConfig(depth=4, num_iterations=20, device_batch_size=8)
    assert other.differences(stored) == [
        "--num-iterations (10 -> 20)",
        "--device-batch-size (not given -> 8)",
    ]


def test_a_depth_that_heads_cannot_share_names_its_neighbours() -> None:
    with pytest.raises(MlxchatError, match="depth of 5 makes a width of 320") as raised:
        plan(PretrainConfig(depth=5), 1024, SMALL)
    assert raised.value.remedy == "Use --depth 4 or 6, or another --head-dim."
    assert plan(PretrainConfig(depth=5, head_dim=64), 1024, SMALL).model.n_head == 5


def test_a_head_dimension_that_never_works() -> None:
    with pytest.raises(MlxchatError) as raised:
        plan(PretrainConfig(depth=4, head_dim=3), 1024, SMALL)
    assert raised.value.remedy == "Use another --head-dim."


def test_a_model_that_the_machine_cannot_hold() -> None:
    with pytest.raises(MlxchatError, match="this machine has 1 GB") as raised:
        plan(PretrainConfig(depth=20), 65_536, SMALL)
    assert "--depth" in raised.value.remedy


def test_a_setting_that_older_runs_do_not_know_has_its_default() -> None:
    stored = PretrainConfig(depth=4).model_dump(mode="json")
    del stored["head_dim"]
    assert PretrainConfig(depth=4).differences(stored) == []
    assert PretrainConfig(depth=4, head_dim=64).differences(stored) == ["--head-dim (128 -> 64)"]
