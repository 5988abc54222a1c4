"""The defaults of each architecture, and when two runs count as the same."""

import pytest
from pydantic import ValidationError

from mlxchat.config.pretrain import PRESETS, PretrainConfig
from mlxchat.config.recipes import CLASSIC, MODERN, Recipe
from mlxchat.errors import MlxchatError


def test_defaults_are_those_of_the_architecture() -> None:
    assert PretrainConfig().recipe == CLASSIC
    assert PretrainConfig(arch="modern").recipe == MODERN
    given = PretrainConfig(arch="modern", grad_clip=1.0, warmup_steps=0, window_pattern="L")
    assert given.recipe == MODERN._replace(grad_clip=1.0, warmup_steps=0, window_pattern="L")


def test_every_default_of_an_architecture_can_be_given() -> None:
    assert set(Recipe._fields) - set(PretrainConfig.model_fields) == {"vocabulary"}


@pytest.mark.parametrize(("setting", "value"), [("scalar_lr", 0.5), ("window_pattern", "SL")])
def test_settings_without_effect_are_refused(setting: str, value: object) -> None:
    with pytest.raises(MlxchatError, match=f"`{setting}") as raised:
        PretrainConfig.model_validate({setting: value})
    assert "`arch=modern`" in raised.value.remedy
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
def test_numbers_beyond_all_arithmetic_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValidationError, match=setting):
        PretrainConfig.model_validate({setting: value})


def test_differences_name_what_would_change_the_result() -> None:
    stored = PretrainConfig(depth=4, num_iterations=10).model_dump(mode="json")
    same = PretrainConfig(depth=4, num_iterations=10, save_every=2, eval_every=1, streaming=True)
    assert same.differences(stored) == []
    other = PretrainConfig(depth=4, num_iterations=20, embedding_lr=0.3)
    assert other.differences(stored) == [
        "`num_iterations` (10 -> 20)",
        "`embedding_lr` (0.2 -> 0.3)",
    ]


def test_a_default_that_is_spelled_out_is_no_difference() -> None:
    stored = PretrainConfig(arch="modern").model_dump(mode="json")
    assert PretrainConfig(arch="modern", embedding_lr=0.3).differences(stored) == []
    assert PretrainConfig(arch="modern", embedding_lr=0.2).differences(stored) == [
        "`embedding_lr` (0.3 -> 0.2)"
    ]


def test_another_architecture_is_one_difference() -> None:
    stored = PretrainConfig().model_dump(mode="json")
    assert PretrainConfig(arch="modern").differences(stored) == ["`arch` (classic -> modern)"]


def test_a_setting_that_older_runs_do_not_know_has_its_default() -> None:
    stored = PretrainConfig(depth=4).model_dump(mode="json")
    del stored["head_dim"]
    assert PretrainConfig(depth=4).differences(stored) == []
    assert PretrainConfig(depth=4, head_dim=64).differences(stored) == ["`head_dim` (128 -> 64)"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_it_names(preset: str) -> None:
    config = PretrainConfig.model_validate({"preset": preset})
    said = (config.of_preset or "").split()
    assert said == [f"`{name}={value}`" for name, value in PRESETS[preset].items()]
    spelled_out = PretrainConfig.model_validate(PRESETS[preset])
    assert config == spelled_out.model_copy(update={"preset": preset})
    assert all(
        setting in str(PretrainConfig.model_fields["preset"].description) for setting in said
    )


def test_what_is_given_wins_over_the_preset() -> None:
    config = PretrainConfig(preset="ultra-low", max_seq_len=2048)
    assert config.max_seq_len == 2048  # though it is the default
    assert config.of_preset == "`memory_limit=least`"
    assert PretrainConfig().of_preset is None


def test_a_preset_that_does_not_go_with_a_budget_is_named() -> None:
    with pytest.raises(MlxchatError, match=r"`num_iterations=100` \(of `preset=quick`\)"):
        PretrainConfig(preset="quick", budget="2h")


def test_memory_settings_are_no_difference_between_runs() -> None:
    stored = PretrainConfig(depth=4).model_dump(mode="json")
    other = {"memory_limit": "4GB", "grad_checkpoint": "on", "wired_limit": "2GB"}
    assert PretrainConfig.model_validate({"depth": 4, **other}).differences(stored) == []
    assert PretrainConfig(depth=4, preset="low-memory").differences(stored) == []
