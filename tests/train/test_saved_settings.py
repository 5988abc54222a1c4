"""A saved run is resumed by its name, with the settings that it was saved with."""

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from support.runs import CONFIG, assert_same, final, run, run_folder
from support.saved_runs import RUNS

import mlxchat
from mlxchat.checkpoint import store
from mlxchat.checkpoint.files import TRAINER
from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import SftConfig
from mlxchat.errors import CheckpointError, ConfigError, MlxchatError, NotFound
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted
from mlxchat.train.saved_settings import settings_to_resume


@pytest.fixture
def saved(tmp_path: Path) -> Home:
    """A home with the saved runs ``run`` and ``tuned``, of pretraining and of fine-tuning."""
    home = Home(tmp_path / "saved")
    for name in ("classic", "sft"):
        shutil.copytree(RUNS / name, home.root, dirs_exist_ok=True)
    return home


def names(home: Home) -> tuple[str, str]:
    folders = (home.runs, home.finetuned)
    [base], [tuned] = (
        [run.name for run in folder.iterdir() if store.steps(run)] for folder in folders
    )
    return base, tuned


def test_settings_are_those_of_the_run_and_what_is_given(saved: Home) -> None:
    base, tuned = names(saved)
    settings = settings_to_resume(PretrainConfig, base, saved, {"memory_limit": "2GB"})
    again = PretrainConfig(**settings)
    assert (again.tag, again.memory_limit, again.dataset) == (base, "2GB", "builtin")
    assert SftConfig(**settings_to_resume(SftConfig, tuned, saved, {})).tag == tuned


def test_a_renamed_run_keeps_its_new_name(saved: Home) -> None:
    base, _ = names(saved)
    (saved.runs / base).rename(saved.runs / "renamed")
    assert settings_to_resume(PretrainConfig, "renamed", saved, {})["model_tag"] == "renamed"


@pytest.mark.parametrize(
    ("kind", "name", "given", "error", "problem", "remedy"),
    [
        (PretrainConfig, "nothing", {}, NotFound, "no run 'nothing' to resume", "There are: "),
        (PretrainConfig, "..", {}, NotFound, "no run '..' to resume", "There are: "),
        (PretrainConfig, "", {}, NotFound, "no run '' to resume", "There are: "),
        (PretrainConfig, "a\n\x1b[2J", {}, NotFound, "no run 'a ?[2J'", "There are: "),
        (PretrainConfig, "{base}s", {}, NotFound, "no run", "Did you mean {base}?"),
        (MidConfig, "nothing", {}, NotFound, "no run 'nothing'", "No run has been"),
        (PretrainConfig, "{tuned}", {}, ConfigError, "of fine-tuning, not of pre", "mlxchat sft"),
        (RlConfig, "{base}", {}, ConfigError, "of pretraining, not of rein", "mlxchat train --res"),
        (PretrainConfig, "{base}", {"model_tag": "x"}, ConfigError, "`model_tag=x`", "one of them"),
        (PretrainConfig, "empty", {}, NotFound, "has not saved a checkpoint", "Repeat the command"),
    ],
)
def test_a_run_that_cannot_be_resumed_is_refused(
    saved: Home,
    kind: type[RunConfig],
    name: str,
    given: dict[str, Any],
    error: type[MlxchatError],
    problem: str,
    remedy: str,
) -> None:
    (saved.runs / "empty").mkdir()
    base, tuned = names(saved)
    with pytest.raises(error) as raised:
        settings_to_resume(kind, name.format(base=base, tuned=tuned), saved, given)
    assert problem.format(base=base) in raised.value.problem
    assert remedy.format(base=base) in raised.value.remedy


def test_a_damaged_run_is_refused(saved: Home) -> None:
    base, _ = names(saved)
    newest = store.latest(saved.runs / base)
    assert newest
    (newest / TRAINER).write_text('{"format": 4')
    with pytest.raises(CheckpointError, match=r"trainer\.json") as raised:
        settings_to_resume(PretrainConfig, base, saved, {})
    assert raised.value.remedy


def test_a_run_goes_on_from_its_name_alone(prepared: Path, tmp_path: Path) -> None:
    """The result is that of a run that was never stopped, bit for bit."""
    other = tmp_path / "other"
    shutil.copytree(prepared, other, ignore=shutil.ignore_patterns("other"))
    config = CONFIG.model_copy(update={"eval_every": 0, "sample_every": 0})
    run(prepared, config)
    run(other, config, stop_at=4)
    assert store.steps(run_folder(other))[-1] < 12
    list(mlxchat.pretrain(resume="run", home=other))
    assert_same(final(prepared), final(other))
    events = list(mlxchat.pretrain(resume="run", home=other))
    assert isinstance(events[0], Noted) and "is finished" in events[0].text


def test_python_names_what_does_not_go_together(saved: Home) -> None:
    base, _ = names(saved)
    for problem, arguments in (
        ("`fresh` starts from scratch", {"fresh": True}),
        ("`resume` cannot be combined with a PretrainConfig", {"config": CONFIG}),
        ("There is no setting `deep`", {"deep": 4}),
    ):
        with pytest.raises(ConfigError, match=problem):
            mlxchat.pretrain(resume=base, home=saved.root, **arguments)
    with pytest.raises(ConfigError, match="`resume=3` is not the name of a run"):
        mlxchat.pretrain(resume=cast(Any, 3), home=saved.root)
    with pytest.raises(ConfigError, match="`seed` ") as raised:
        list(mlxchat.pretrain(resume=base, home=saved.root, seed=7))
    assert f"`resume={base}` alone" in raised.value.remedy
