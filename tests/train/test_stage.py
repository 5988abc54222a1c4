"""The table of stages, and what is asked of the stage of a checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.saved_runs import RUNS, trainer_fields

from mlxchat.checkpoint import files, trainer
from mlxchat.checkpoint.layout import TRAINER
from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.documents import BuiltinDocuments
from mlxchat.data.preparation import WHOLE_TEXT
from mlxchat.errors import CheckpointError
from mlxchat.home import STAGE_FOLDERS, Home
from mlxchat.telemetry.meter import Meter
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.stage import STAGES, history_of, read_trainer, stage_of


def saved_step(name: str, home: Path, **changed: Any) -> Path:
    """A copy of a step that the version before saved, with other fields in trainer.json."""
    shutil.copytree(RUNS / name, home)
    [folder] = home.glob("*_checkpoints/*/step_*")
    (folder / TRAINER).write_text(json.dumps(trainer_fields(name) | changed), "utf-8")
    files.write_checksums(folder)
    return folder


def test_every_stage_has_a_folder_and_settings_of_its_own() -> None:
    assert STAGES.keys() == STAGE_FOLDERS.keys()
    settings = {PretrainConfig, MidConfig, SftConfig, RlConfig}
    assert {stage.settings for stage in STAGES.values()} == settings


@pytest.mark.parametrize(("name", "kind"), [("classic", PretrainConfig), ("sft", SftConfig)])
def test_settings_are_read_as_those_of_the_stage(name: str, kind: type, home: Path) -> None:
    folder = saved_step(name, home)
    state = read_trainer(folder)
    assert type(state.settings) is kind
    stage = stage_of(state, Home(home))
    assert type(stage) is STAGES[state.stage]
    assert stage.folder == folder.parent


@pytest.mark.parametrize("name", ["classic", "modern", "sft"])
def test_the_trainers_state_is_written_as_it_was_read(name: str, home: Path) -> None:
    state = read_trainer(saved_step(name, home))
    written, before = json.loads(state.model_dump_json()), trainer_fields(name)
    for fields in (written, before):  # a later version of mlxchat adds to the plan, and renames
        del fields["plan"]
    before["meter"] = {"core": [], **before["meter"]}  # measured since
    kind = type(state.settings)
    defaults = json.loads(kind().model_dump_json())  # of settings added since
    meter = json.loads(Meter().state().model_dump_json())  # of numbers added since
    assert written == {
        **before,
        "settings": defaults | kind.upgraded(before["settings"]),
        "meter": meter | before["meter"],
    }


def test_a_run_from_before_there_were_recipes_has_its_architectures(home: Path) -> None:
    folder = saved_step("classic", home)
    fields = json.loads((folder / TRAINER).read_text("utf-8"))
    assert "recipe" not in fields["settings"]
    fields["settings"]["budget"], fields["settings"]["num_iterations"] = "1h", None
    (folder / TRAINER).write_text(json.dumps(fields), "utf-8")
    files.write_checksums(folder)
    settings = read_trainer(folder).settings
    assert isinstance(settings, PretrainConfig)
    assert settings.recipe_name == "classic"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 2}, "format 2, not 4"),
        ({"stage": "dreaming"}, "its stage is 'dreaming'"),
        ({"settings": {"depth": 2, "layers": 3}}, "settings.layers"),
        ({"plan": {}}, "plan."),
    ],
)
def test_a_step_of_another_version_is_refused(
    changed: dict[str, Any], said: str, home: Path
) -> None:
    folder = saved_step("classic", home, **changed)
    with pytest.raises(CheckpointError, match="saved by another version of mlxchat") as raised:
        read_trainer(folder)
    assert said in raised.value.problem
    assert "chat" in raised.value.remedy
    assert history_of(folder, Home(home)).trainings == ()


def test_only_the_budget_recipe_uses_the_rest_of_long_documents(home: Path) -> None:
    def whole(**settings: Any) -> bool:
        stage = Pretraining(PretrainConfig(**settings), Home(home))
        return stage.preparation(BuiltinDocuments(seed=0)) is WHOLE_TEXT

    assert whole(budget="1h")
    assert not whole(budget="1h", recipe="classic")
    assert not whole(arch="modern")


def test_a_step_of_another_stage_is_refused(home: Path) -> None:
    folder = saved_step("sft", home)
    with pytest.raises(CheckpointError, match="its stage is 'fine-tuning'"):
        trainer.read_state(folder, {"pretraining": PretrainConfig})


def test_history_ends_with_the_run_that_saved_the_step(home: Path) -> None:
    history = history_of(saved_step("sft", home), Home(home))
    before, own = history.trainings
    assert (before.stage, own.stage) == ("pretraining", "fine-tuning")
    assert own.began_with == before.run == "classic"
    assert own.data == ("conversations of chats.jsonl",)
    assert own.tokens == own.step * 128
