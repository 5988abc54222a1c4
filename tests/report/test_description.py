"""A run in detail, and runs side by side."""

import json
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.run_homes import PLAN, MadeRun, put_adapter

from mlxchat.checkpoint import files
from mlxchat.config.lora import LoraTraining
from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import SftConfig
from mlxchat.errors import NotFound
from mlxchat.home import Home
from mlxchat.report.description import (
    RunDescription,
    data_of,
    described_run,
    setting_rows,
)
from mlxchat.report.differences import compared, differing_settings
from mlxchat.report.provenance import command_of_run


@pytest.fixture
def place(home: Path) -> Home:
    return Home(home)


def test_a_run_in_detail(place: Home) -> None:
    MadeRun("fox", resumed=(20,)).put(place)
    MadeRun("fox-sft", stage="fine-tuning").put(place)
    run = described_run(place, "fox")
    assert [start.step for start in run.starts] == [0, 20]
    assert [sample.text for sample in run.samples] == [" saw 40 hens."]
    assert [saved.step for saved in run.steps] == [30, 40]
    assert run.continued == ("fox-sft",) and run.data == ("the built-in corpus",)
    assert run.fault is None and run.versions and run.versions.startswith("mlxchat ")
    assert run.command == (
        "mlxchat train --dataset builtin --save-every 10 --depth 2 --max-seq-len 64 "
        "--num-iterations 40 --total-batch-size 1024 --model-tag fox"
    )


def test_settings_are_given_derived_or_defaults(place: Home) -> None:
    MadeRun("fox", settings={"depth": None, "memory_limit": "2GB"}).put(place)
    rows = {row.name: (row.value, row.origin) for row in described_run(place, "fox").rows}
    assert rows["num_iterations"] == ("40", "given")
    assert rows["memory_limit"] == ("2GB", "given")
    assert rows["depth"] == ("2", "derived")
    assert rows["arch"] == ("classic", "derived") and rows["recipe"] == ("classic", "derived")
    assert rows["embedding_lr"] == ("0.2", "derived")
    assert rows["target_param_data_ratio"] == ("20", "derived")
    assert rows["sample_every"] == ("8", "derived")
    assert rows["seed"] == ("42", "default") and rows["streaming"] == ("false", "default")
    assert rows["rate: matrix"] == ("0.02", "derived")
    assert not rows.keys() & {"model_tag", "lora", "init_from", "budget"}


def test_the_settings_of_an_adapter_are_shown() -> None:
    config = SftConfig(source="fox", lora=LoraTraining(rank=4, modules=("attn.c_q", "attn.c_v")))
    rows = {row.name: (row.value, row.origin) for row in setting_rows(config, PLAN)}
    assert rows["lora"] == ("true", "given") and rows["rank"] == ("4", "given")
    assert rows["modules"] == ("attn.c_q,attn.c_v", "given") and rows["scale"] == ("20", "default")


@pytest.mark.parametrize(
    ("stage", "config", "name", "command"),
    [
        ("pretraining", PretrainConfig(), "d12", "mlxchat train"),
        ("pretraining", PretrainConfig(preset="quick"), "quick", "mlxchat train --preset quick"),
        (
            "pretraining",
            PretrainConfig(depth=4),
            "mine",
            "mlxchat train --depth 4 --model-tag mine",
        ),
        (
            "fine-tuning",
            SftConfig(source="d4", data=["a b.jsonl", "builtin:2"], load_optimizer=True),
            "d4-sft",
            "mlxchat sft --source d4 --data 'a b.jsonl' --data builtin:2 --load-optimizer",
        ),
        (
            "fine-tuning",
            SftConfig(source="d4", lora=LoraTraining(rank=4, dropout=0.1)),
            "d4-sft-lora",
            "mlxchat sft --source d4 --lora --rank 4 --dropout 0.1",
        ),
        ("mid-training", MidConfig(source="d4"), "d4-mid", "mlxchat mid --source d4"),
        (
            "reinforcement learning",
            RlConfig(source="d4-sft", task="counting", level=2),
            "d4-sft-rl",
            "mlxchat rl --source d4-sft --task counting --level 2",
        ),
    ],
)
def test_the_command_has_what_differs_from_the_defaults(
    stage: str, config: RunConfig, name: str, command: str
) -> None:
    assert command_of_run(stage, config, name) == command
    assert command_of_run(stage, config, name, ranks=2).startswith(f"{command.split(' --')[0]} ")
    assert "--ranks 2" in command_of_run(stage, config, name, ranks=2)


def test_the_data_in_words() -> None:
    assert data_of(PretrainConfig(), ["a", "b", "c"], "0123456789abcdef") == (
        "fineweb-edu (ODC-BY 1.0)",
        "2 training shards",
        "revision 0123456789ab",
    )
    assert data_of(PretrainConfig(data_dir=Path("/x")), [], None) == ("the shards in /x",)
    chats = SftConfig(source="a", data=["chats.jsonl"], identity="name=Ada", spelling=2000)
    told = ("chats.jsonl", "its identity", "2,000 conversations about spelling")
    assert data_of(chats, [], None) == told
    assert data_of(RlConfig(task="counting", level=2), [], None) == ("counting, level 2",)


def test_what_is_not_known_of_a_run_is_left_out(place: Home) -> None:
    folder = put_step(place.runs / "copy", 3, quantized=True)
    (folder / "history.json").write_text('{"tag": "fox"}')
    files.write_checksums(folder)
    copy = described_run(place, "copy")
    assert copy.rows == () and copy.command is None and copy.made_from == "fox"
    MadeRun("unsaved", saved=()).put(place)
    assert described_run(place, "unsaved").steps == ()
    run = MadeRun("other").put(place)
    trainer = run / "step_000040" / "trainer.json"
    trainer.write_text(trainer.read_text().replace('"matrix_lr":0.02', '"matrix_lr":"x"'))
    other = described_run(place, "other")
    assert other.summary.state == "finished" and "another version" in str(other.fault)
    with pytest.raises(NotFound):
        described_run(place, "missing")


# ==== Side by side ====


def several(place: Home, *runs: MadeRun) -> list[RunDescription]:
    for run in runs:
        run.put(place)
    return [described_run(place, run.tag) for run in runs]


def test_the_settings_that_differ(place: Home) -> None:
    runs = several(
        place,
        MadeRun("a"),
        MadeRun("b", settings={"matrix_lr": 0.04, "dropout": 0.1}),
        MadeRun("c", stage="fine-tuning", settings={"data": ["x.jsonl"]}),
    )
    differing = dict(differing_settings(runs[:2]))
    assert differing.keys() == {"matrix_lr", "dropout"}
    assert [row and row.value for row in differing["matrix_lr"]] == ["0.02", "0.04"]
    across = dict(differing_settings(runs))
    assert [row and row.value for row in across["data"]] == [None, None, "x.jsonl"]
    assert "head_dim" not in across  # a default, which fine-tuning does not have


def test_the_lowest_bits_per_byte_are_better(place: Home) -> None:
    runs = several(place, MadeRun("a", bits=0.1), MadeRun("b"), MadeRun("c", bits=0.2))
    found = compared(runs)
    assert found.best == "b" and "0.1000 bits per byte (8.9%) below a" in found.reason
    close = several(place, MadeRun("d", bits=0.0005))
    assert compared([runs[1], *close]).best is None


def test_runs_that_nothing_compares(place: Home) -> None:
    base, tuned, other = several(
        place,
        MadeRun("a"),
        MadeRun("b", stage="fine-tuning"),
        MadeRun("c", settings={"seed": 7}),
    )
    assert "different stages" in compared([base, tuned]).reason
    assert "different text" in compared([base, other]).reason
    [unmeasured] = several(place, MadeRun("d", steps=1, saved=()))
    assert compared([base, unmeasured]).best is None


def test_reinforcement_learning_is_compared_by_questions(place: Home) -> None:
    runs = several(
        place,
        MadeRun("a", stage="reinforcement learning", settings={"level": 2}),
        MadeRun("b", stage="reinforcement learning", settings={"level": 2}),
    )
    assert compared(runs).reason == "No held-out questions were asked of a and b."
    for tag, share in (("a", 0.2), ("b", 0.5)):
        trainer = place.stage("reinforcement learning") / tag / "step_000040" / "trainer.json"
        fields = json.loads(trainer.read_text())
        fields["meter"]["scores"] = [[40, share]]
        trainer.write_text(json.dumps(fields))
    runs = [described_run(place, tag) for tag in "ab"]
    assert compared(runs).best == "b" and "30.0% more" in compared(runs).reason
    assert runs[0].summary.tokens is None


def test_adapters_are_runs_too(place: Home) -> None:
    fox = MadeRun("fox").put(place)
    put_adapter(place, "fox-lora", fox / "step_000040")
    assert described_run(place, "fox-lora").summary.model.base == "fox"
    assert described_run(place, "fox").continued == ("fox-lora",)
