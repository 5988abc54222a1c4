"""The command that repeats a run, and the marks of its settings."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from support.logs import saved_run

from mlxchat.cli.app import app
from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import SftConfig
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.home import Home
from mlxchat.report.facts import read_facts
from mlxchat.report.provenance import command_of_run, shown_settings

NAMES = {command: stage for stage, command in COMMAND_OF_STAGE.items()}


def parsed(line: str, kind: type[RunConfig]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a command line that were given: those of the settings, and the others."""
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, arguments)
    given = {
        option: value
        for option, value in context.params.items()
        if str(context.get_parameter_source(option)).endswith("COMMANDLINE")
    }
    fields = kind.model_fields.keys() - {"lora"}
    own = {option: value for option, value in given.items() if option in fields}
    return own, {option: value for option, value in given.items() if option not in fields}


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("train", PretrainConfig(depth=4, streaming=True, data_dir=Path("/some where/data"))),
        ("train", PretrainConfig.model_validate({"preset": "quick"})),
        ("train", PretrainConfig(budget="1h30m", grad_clip=0.0, memory_limit="12GB")),
        ("mid", MidConfig(source="d4", data=["a b.jsonl:2", "builtin"], epochs=2)),
        ("sft", SftConfig(source="d4", data=["it's.jsonl"], load_optimizer=True)),
        ("rl", RlConfig(source="d4-sft", reward=["r.py:f:0.5", "form"], top_k=9)),
    ],
)
def test_the_command_gives_the_same_settings(command: str, config: RunConfig) -> None:
    line = command_of_run(NAMES[command], config, config.tag, fresh=True)
    own, others = parsed(line, type(config))
    assert type(config).model_validate(own) == config
    assert others == {"fresh": True}


def test_an_adapter_is_in_the_command() -> None:
    config = SftConfig.model_validate(
        {"source": "d4", "lora": {"rank": 16, "modules": ["attn.c_q", "mlp.c_fc"], "dora": True}}
    )
    _, others = parsed(command_of_run("fine-tuning", config, "d4-sft-lora", 2), SftConfig)
    assert others.pop("modules") in (("attn.c_q", "mlp.c_fc"), "attn.c_q,mlp.c_fc")
    assert others == {"lora": True, "rank": 16, "dora": True, "ranks": 2}


def test_the_users_own_folder_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/ada")
    line = command_of_run("pretraining", PretrainConfig(data_dir=Path("/Users/ada/texts")), "new")
    assert "ada" not in line
    own, _ = parsed(line, PretrainConfig)
    assert PretrainConfig.model_validate(own).data_dir == Path("/Users/ada/texts")


def test_a_run_that_was_renamed_is_named() -> None:
    config = PretrainConfig(depth=4, model_tag="old")
    assert command_of_run("pretraining", config, "new") == "mlxchat train --depth 4 --model-tag new"
    assert command_of_run("pretraining", config, "d4") == "mlxchat train --depth 4"


def test_settings_are_marked(home: Path) -> None:
    facts = read_facts(Home(home), saved_run(home, "modern"))
    assert facts.trainer is not None
    shown = {s.name: s for s in shown_settings(facts.trainer.settings, facts.trainer.plan)}
    assert shown["depth"][2:] == ("2", "given")
    assert shown["window_pattern"].origin == "derived"
    assert shown["device_batch_size"].origin == "given"
    assert shown["seed"][2:] == ("42", "default")
    assert shown["grad_checkpoint"][2:] == ("off", "derived")
    assert {s.group for s in shown.values()} >= {"Memory", "Data and tokenizer", "CORE"}
