"""The defaults of each architecture, presets, and which settings make another run."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mlxchat.checkpoint.run_names import new_run
from mlxchat.config.lora import LoraTraining
from mlxchat.config.pretrain import PRESETS, PretrainConfig
from mlxchat.config.recipes import BUDGET_RECIPE, CLASSIC_RECIPE, MODERN_RECIPE, Recipe
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import is_name
from mlxchat.config.sft import SftConfig
from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.home import Home


def test_defaults_are_those_of_the_architecture() -> None:
    assert PretrainConfig().numbers == CLASSIC_RECIPE
    assert PretrainConfig(arch="modern").numbers == MODERN_RECIPE
    assert PretrainConfig(recipe="modern").numbers == MODERN_RECIPE
    assert PretrainConfig(budget="1h").numbers == BUDGET_RECIPE
    assert PretrainConfig(budget="1h", recipe="classic").numbers == CLASSIC_RECIPE
    assert PretrainConfig(budget="1h", arch="classic").numbers.embedding_lr == 0.2
    given = PretrainConfig(arch="modern", grad_clip=1.0, warmup_steps=0, window_pattern="L")
    expected = MODERN_RECIPE._replace(grad_clip=1.0, warmup_steps=0, window_pattern="L")
    assert given.numbers == expected


def test_every_number_of_a_recipe_is_a_setting() -> None:
    others = set(Recipe._fields) - set(PretrainConfig.model_fields)
    assert others == {"vocabulary", "transferred"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"recipe": "budget"}, "none is given"),
        ({"recipe": "classic", "arch": "modern"}, "cannot be combined with `arch=modern`"),
        ({"recipe": "modern", "arch": "classic"}, "cannot be combined with `arch=classic`"),
        ({"budget": "1h", "arch": "classic", "scalar_lr": 0.5}, "no scalars"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused(
    settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        PretrainConfig.model_validate(settings)
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("then", "now", "differences"),
    [
        ({"arch": "modern"}, {"recipe": "modern"}, []),
        ({}, {"recipe": "classic", "arch": "classic"}, []),
        ({"budget": "1h"}, {"budget": "1h", "recipe": "budget", "arch": "modern"}, []),
        ({"budget": "1h", "arch": "classic"}, {"budget": "1h"}, ["`arch` (classic -> modern)"]),
    ],
)
def test_spelling_out_the_recipe_is_no_difference(
    then: dict[str, object], now: dict[str, object], differences: list[str]
) -> None:
    stored = PretrainConfig.model_validate(then).model_dump(mode="json")
    found = PretrainConfig.model_validate(now).differences(stored)
    assert [text for text in found if "arch" in text or "recipe" in text] == differences


@pytest.mark.parametrize(("setting", "value"), [("scalar_lr", 0.5), ("window_pattern", "SL")])
def test_settings_without_effect_are_refused(setting: str, value: object) -> None:
    with pytest.raises(MlxchatError, match=setting) as raised:
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
def test_absurd_numbers_are_refused(setting: str, value: float) -> None:
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


def test_spelling_out_a_default_is_no_difference() -> None:
    stored = PretrainConfig(arch="modern").model_dump(mode="json")
    assert PretrainConfig(arch="modern", embedding_lr=0.3).differences(stored) == []
    assert PretrainConfig(arch="modern", embedding_lr=0.2).differences(stored) == [
        "`embedding_lr` (0.3 -> 0.2)"
    ]


def test_of_an_adapter_the_settings_that_differ_are_named() -> None:
    stored = SftConfig(lora=LoraTraining(rank=4)).model_dump(mode="json")
    assert SftConfig(lora=LoraTraining(rank=4)).differences(stored) == []
    other = SftConfig(lora=LoraTraining(rank=4, layers=3, learning_rate=0.01))
    assert other.differences(stored) == [
        "`layers` (not given -> 3)",
        "`learning_rate` (0.001 -> 0.01)",
    ]
    [without] = SftConfig().differences(stored)
    assert without.startswith("`lora` (rank 4, scale 20.0, dropout 0.0, dora False")


def test_another_architecture_is_one_difference() -> None:
    stored = PretrainConfig().model_dump(mode="json")
    assert PretrainConfig(arch="modern").differences(stored) == ["`arch` (classic -> modern)"]


def test_a_setting_missing_in_an_older_run_has_its_default() -> None:
    stored = PretrainConfig(depth=4).model_dump(mode="json")
    del stored["head_dim"]
    assert PretrainConfig(depth=4).differences(stored) == []
    assert PretrainConfig(depth=4, head_dim=64).differences(stored) == ["`head_dim` (128 -> 64)"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_its_help_says(preset: str) -> None:
    config = PretrainConfig.model_validate({"preset": preset})
    listed = (config.of_preset or "").split()
    assert listed == [f"`{name}={value}`" for name, value in PRESETS[preset].items()]
    spelled_out = PretrainConfig.model_validate(PRESETS[preset])
    assert config == spelled_out.model_copy(update={"preset": preset})
    assert " ".join(listed) in str(PretrainConfig.model_fields["preset"].description)


def test_a_given_setting_overrides_the_preset() -> None:
    config = PretrainConfig(preset="ultra-low", max_seq_len=2048)
    assert config.max_seq_len == 2048  # though it is the default
    assert config.of_preset == "`memory_limit=least`"
    assert PretrainConfig().of_preset is None


def test_an_error_names_the_preset_that_conflicts_with_a_budget() -> None:
    with pytest.raises(MlxchatError, match=r"`num_iterations=2` \(from `preset=test`\)"):
        PretrainConfig(preset="test", budget="2h")
    with pytest.raises(MlxchatError, match=r"`budget=5m` \(from `preset=quick`\)"):
        PretrainConfig(preset="quick", num_iterations=50)


def test_memory_settings_are_no_difference_between_runs() -> None:
    stored = PretrainConfig(depth=4).model_dump(mode="json")
    other = {"memory_limit": "4GB", "grad_checkpoint": "on", "wired_limit": "2GB"}
    assert PretrainConfig.model_validate({"depth": 4, **other}).differences(stored) == []
    assert PretrainConfig(depth=4, preset="low-memory").differences(stored) == []


def test_what_logs_in_to_a_hub_is_used_but_not_shown_or_stored() -> None:
    config = PretrainConfig(endpoint="https://me:secret@hub.example/m?token=secret")
    for copy in (config, config.model_copy(), PretrainConfig(**config.model_dump())):
        assert copy.endpoint == "https://me:secret@hub.example/m?token=secret"
        assert "secret" not in f"{copy!r} {copy} {copy.model_dump_json()}"
    assert config.model_dump(mode="json")["endpoint"] == "https://hub.example/m"
    assert config.differences({"endpoint": None}) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../x", "a b", "d4\n", "d4\x1b[2J", "\x00", "d4\u2028", "é", "-a"],
)
def test_names_of_folders_are_checked_wherever_they_are_from(name: str, tmp_path: Path) -> None:
    assert not is_name(name)
    for model, fields in (
        (PretrainConfig, ("dataset", "model_tag")),
        (SftConfig, ("model_tag",)),
    ):
        for field in fields:
            with pytest.raises(ValidationError):
                model.model_validate({field: name})
    with pytest.raises(ConfigError, match="cannot be the name") as raised:
        new_run(Home(tmp_path), name, False, "model_tag")
    assert raised.value.problem.isprintable()


@pytest.mark.parametrize(
    "source", ["/", ".", "..", "my model", "/models/a\nb/", "a\x1b/step_000003"]
)
def test_a_run_is_not_named_after_any_folder(source: str) -> None:
    for config in (SftConfig(source=source), PretrainConfig(init_from=source)):
        with pytest.raises(ConfigError, match="cannot be the name of a run") as raised:
            _ = config.tag
        assert raised.value.problem.isprintable() and "`model_tag`" in raised.value.remedy
        assert config.model_copy(update={"model_tag": "mine"}).tag == "mine"
    assert SftConfig(source="/models/d4/step_000003").tag == "d4-sft"
    assert PretrainConfig(init_from="/models/d4/").tag == "d4-continued"


def test_a_run_is_sampled_five_times_by_default() -> None:
    config = PretrainConfig()
    assert [config.sampling_interval(total) for total in (1, 5, 100, 101)] == [1, 1, 20, 21]
    assert PretrainConfig(sample_every=7).sampling_interval(100) == 7
    assert PretrainConfig(sample_every=0).sampling_interval(100) == 0


def test_paths_that_are_there_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is resumed by its name may be so in another folder; names stay names."""
    monkeypatch.chdir(tmp_path)
    for name in ("chats.jsonl", "builtin", "answer", "mine.py", "gsm8k"):
        (tmp_path / name).touch()
    given = ["chats.jsonl", "chats.jsonl:0.5", "builtin:2", "./builtin", "spelling-2", "no.jsonl"]
    assert SftConfig(data=given).data == [
        f"{tmp_path}/chats.jsonl",
        f"{tmp_path}/chats.jsonl:0.5",
        "builtin:2",
        f"{tmp_path}/builtin",
        "spelling-2",
        "no.jsonl",
    ]
    rl = RlConfig(task="chats.jsonl", reward=["mine.py:brief:0.5", "answer:2"])
    assert rl.task == f"{tmp_path}/chats.jsonl"
    assert rl.reward == [f"{tmp_path}/mine.py:brief:0.5", "answer:2"]
    assert RlConfig(task="gsm8k").task == "gsm8k"
