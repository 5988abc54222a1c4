"""What the settings mean for each architecture, and when two runs are the same."""

import pytest
from pydantic import ValidationError

from mlxchat.errors import MlxchatError
from mlxchat.train.recipes import CLASSIC, MODERN, Recipe
from mlxchat.train.settings import PretrainConfig


def test_what_is_not_given_is_the_architectures() -> None:
    assert PretrainConfig().recipe == CLASSIC
    assert PretrainConfig(arch="modern").recipe == MODERN
    given = PretrainConfig(arch="modern", grad_clip=1.0, warmup_steps=0, window_pattern="L")
    assert given.recipe == MODERN._replace(grad_clip=1.0, warmup_steps=0, window_pattern="L")


def test_every_default_of_an_architecture_can_be_given() -> None:
    assert set(Recipe._fields) - set(PretrainConfig.model_fields) == {"vocabulary"}


@pytest.mark.parametrize(("setting", "value"), [("scalar_lr", 0.5), ("window_pattern", "SL")])
def test_settings_without_effect_are_refused(setting: str, value: object) -> None:
    with pytest.raises(MlxchatError, match=f"--{setting.replace('_', '-')}") as raised:
        PretrainConfig.model_validate({setting: value})
    assert "--arch modern" in raised.value.remedy
    assert getattr(PretrainConfig.model_validate({setting: value, "arch": "modern"}), setting)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("target_param_data_ratio", 1e305),
        ("target_param_data_ratio", 1e-320),
        ("max_seq_len", 32_769),
        ("num_iterations", 10**400),
        ("total_batch_size", 10**400),
    ],
)
def test_what_no_arithmetic_could_hold_is_out_of_bounds(setting: str, value: float) -> None:
    with pytest.raises(ValidationError, match=setting):
        PretrainConfig.model_validate({setting: value})


def test_differences_name_what_would_change_the_result() -> None:
    stored = PretrainConfig(depth=4, num_iterations=10).model_dump(mode="json")
    same = PretrainConfig(depth=4, num_iterations=10, save_every=2, eval_every=1, streaming=True)
    assert same.differences(stored) == []
    other = PretrainConfig(depth=4, num_iterations=20, device_batch_size=8, embedding_lr=0.3)
    assert other.differences(stored) == [
        "--num-iterations (10 -> 20)",
        "--device-batch-size (not given -> 8)",
        "--embedding-lr (0.2 -> 0.3)",
    ]


def test_a_default_that_is_spelled_out_is_no_difference() -> None:
    stored = PretrainConfig(arch="modern").model_dump(mode="json")
    assert PretrainConfig(arch="modern", embedding_lr=0.3).differences(stored) == []
    assert PretrainConfig(arch="modern", embedding_lr=0.2).differences(stored) == [
        "--embedding-lr (0.3 -> 0.2)"
    ]


def test_another_architecture_is_one_difference() -> None:
    stored = PretrainConfig().model_dump(mode="json")
    assert PretrainConfig(arch="modern").differences(stored) == ["--arch (classic -> modern)"]


def test_a_setting_that_older_runs_do_not_know_has_its_default() -> None:
    stored = PretrainConfig(depth=4).model_dump(mode="json")
    del stored["head_dim"]
    assert PretrainConfig(depth=4).differences(stored) == []
    assert PretrainConfig(depth=4, head_dim=64).differences(stored) == ["--head-dim (128 -> 64)"]
