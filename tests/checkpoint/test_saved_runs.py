"""Runs that an earlier version saved halfway resume, and end as they did in that version.

Not in the same bits: sums on CPUs are more exact since. Their bits now are in
golden/runs/resumed.json.
Fine-tuning does so if conversations are read as then: 128 at a time. Read one by one, as nanochat
reads them, other rows are packed of the same conversations.
"""

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import chain, groupby, islice, pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
from support.cases import GOLDEN, golden
from support.saved_runs import digest, environment, outline, read_weights
from typer.testing import CliRunner

from mlxchat.checkpoint.trainer import read_loader
from mlxchat.cli.app import app
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.documents import Cursor, Read
from mlxchat.data.loader import Loader
from mlxchat.data.packing import unmask
from mlxchat.data.preparation import ANSWERS, BUFFER_CONVERSATIONS
from mlxchat.runtime import machine
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.sft import EARLIER_VERSION, chat_documents

ONE_BY_ONE = ChatDocuments.training
RUNS = ("classic", "modern", "sft")
# With two layers, backout subtracts a share of the last layer's output from itself, which the norm
# undoes: the true gradient is 0, and what AdamW follows is rounding error.
ROUNDING = {"backout_lambda"}
IN_FLOAT32 = machine().backend == "cpu"  # as when they were recorded


class Saved:
    """A copy of a saved run's home, and how the run ended in the version that saved it."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.facts = name, golden(f"runs/{name}.json")
        self.folder = home / self.facts["folder"]
        self.first, self.last = self.facts["saved_step"], self.facts["last_step"]
        made_with = self.facts["made_with"]
        self.same_machine = IN_FLOAT32 and made_with == made_with | environment()

    def step(self, number: int) -> Path:
        return self.folder / f"step_{number:06d}"

    def trainer(self) -> dict[str, Any]:
        """The contents of the earlier version's trainer.json."""
        return json.loads((self.step(self.first) / "trainer.json").read_text("utf-8"))

    def later(self, name: str, after: int) -> dict[int, float]:
        return {int(step): x for step, x in self.facts[name].items() if int(step) > after}


@pytest.fixture(params=RUNS)
def saved(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    shutil.copytree(GOLDEN / "runs" / request.param, home)
    monkeypatch.chdir(home)  # where the data of fine-tuning is
    return Saved(request.param, home)


def mlxchat(command: str) -> str:
    """Run a command line in this process; returns what it prints."""
    program, *arguments = shlex.split(command)
    assert program == "mlxchat"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def events(command: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mlxchat(f"{command} --json").splitlines()]


def close(expected: object) -> object:
    return pytest.approx(expected, rel=1e-4)


def read_128_at_a_time(documents: ChatDocuments, start: Cursor) -> Iterator[Read]:
    """Training documents, as they were read when the runs were saved."""
    one_by_one = ONE_BY_ONE(documents, start)
    for _, of_epoch in groupby(one_by_one, key=lambda read: read[1].epoch):
        while reads := list(islice(of_epoch, 128)):
            yield [*chain.from_iterable(read for read, _ in reads)], reads[-1][1]


def test_resuming_ends_with_the_same_losses_and_weights(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatDocuments, "training", read_128_at_a_time)
    happened = events(saved.facts["command"])
    assert [e["step"] for e in happened if e["event"] == "started"] == [saved.first]
    losses = {e["step"]: e["loss"] for e in happened if e["event"] == "step"}
    assert list(losses) == list(range(saved.first + 1, saved.last + 1))
    assert (happened[-1]["step"], happened[-1]["reason"]) == (saved.last, "finished")
    if not IN_FLOAT32:
        return
    assert losses == close(saved.later("losses", saved.first))
    found = {e["step"]: e["bits_per_byte"] for e in happened if e["event"] == "evaluation"}
    assert found == close(saved.later("bits_per_byte", saved.first))
    weights = read_weights(saved.step(saved.last) / "model.safetensors")
    if saved.same_machine:
        assert digest(weights) == golden("runs/resumed.json")[saved.name]
    assert weights.keys() == saved.facts["final_weights"].keys()
    for name, numbers in outline(weights).items():
        if name in ROUNDING:
            continue
        expected = saved.facts["final_weights"][name]
        typical = expected[0] / weights[name].size ** 0.5
        assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-3 * typical), name


def test_fine_tuning_goes_on_with_every_conversation_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(GOLDEN / "runs" / "sft", home)
    monkeypatch.chdir(home)
    saved = Saved("sft", home)
    folder = saved.step(saved.first)
    settings = SftConfig.model_validate(saved.trainer()["settings"])
    documents = chat_documents(settings, ANSWERS)
    tokenizer, state = Tokenizer.load(folder), read_loader(folder)
    reads = documents.training(state.cursor)
    with Loader(reads, tokenizer, 2, 32, state, preparation=ANSWERS) as batches:
        taken = list(islice(batches, 90))
    after = taken[-1].state
    until = takewhile(lambda read: read[1] <= after.cursor, documents.training(state.cursor))
    came = Counter(
        tuple(tokenizer.render(conversation)[0]) for read, _ in until for conversation in read
    )
    came.update(tuple(unmask(waiting.tokens)[0].tolist()) for waiting in state.buffered)
    went = Counter(tuple(unmask(waiting.tokens)[0].tolist()) for waiting in after.buffered)
    for batch in taken:
        for ids, last in zip(batch.ids.tolist(), batch.targets[:, -1].tolist(), strict=True):
            row = [*ids, last if last >= 0 else tokenizer.bos]
            starts = [place for place, token in enumerate(row) if token == tokenizer.bos]
            pieces = [tuple(row[a:b]) for a, b in pairwise([*starts, len(row)])]
            went.update(piece for piece in pieces if len(piece) > 1)  # the others are padding
    assert went == came
    assert len(state.buffered) > BUFFER_CONVERSATIONS >= len(after.buffered)


def test_fine_tuning_says_that_it_goes_on_in_another_way(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(GOLDEN / "runs" / "sft", home)
    monkeypatch.chdir(home)
    saved = Saved("sft", home)
    noted = [event["text"] for event in events(saved.facts["command"]) if event["event"] == "note"]
    assert EARLIER_VERSION in noted


def test_resuming_keeps_the_log_and_the_meter(saved: Saved) -> None:
    before = saved.trainer()["meter"]
    mlxchat(saved.facts["command"])
    [log] = Path("logs").glob("*/metrics.jsonl")
    logged = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    steps = [event["step"] for event in logged if event["event"] == "step"]
    assert steps == list(range(1, saved.last + 1))
    trainer = json.loads((saved.step(saved.last) / "trainer.json").read_text("utf-8"))
    assert trainer["meter"]["evaluations"][: len(before["evaluations"])] == before["evaluations"]
    assert trainer["meter"]["losses"][: len(before["losses"])] == before["losses"]
    assert trainer["meter"]["elapsed"] > before["elapsed"]
    assert "is finished" in mlxchat(saved.facts["command"])


def test_a_dry_run_shows_the_saved_plan(saved: Saved) -> None:
    if saved.facts["folder"].startswith("chatsft"):
        pytest.skip("fine-tuning has no dry run")
    told = json.loads(mlxchat(f"{saved.facts['command']} --dry-run --json"))
    plan = saved.trainer()["plan"]  # of a model narrower than its depth implies: not a new plan
    plan["chunk_rows"] = plan.pop("loss_rows")  # renamed since
    assert told["saved_step"] == saved.first
    assert {name: told["plan"][name] for name in plan} == plan


def test_chat_answers(saved: Saved) -> None:
    said = mlxchat(saved.facts["chat"]["command"])
    assert said.strip()
    if saved.same_machine:
        assert said == saved.facts["chat"]["says"]


def test_the_saved_step_verifies_and_is_listed_as_trainable(saved: Saved) -> None:
    [verified] = json.loads(mlxchat("mlxchat checkpoints verify --json"))
    assert verified["fault"] is None
    [listed] = json.loads(mlxchat("mlxchat checkpoints list --json"))
    assert (listed["step"], listed["trainable"]) == (saved.first, True)


@pytest.mark.slow
def test_eval_chat_finds_the_same_on_held_out_conversations(saved: Saved) -> None:
    if "evaluation" not in saved.facts:
        pytest.skip("trained on text only")
    found = json.loads(mlxchat(saved.facts["evaluation"]["command"]))
    expected = saved.facts["evaluation"]["finds"]
    for name in ("model", "conversational", "complete"):
        assert found[name] == expected[name]
    for name in ("conversations", "cut", "tokens"):  # those held out are the same ones
        assert found["held_out"][name] == expected["held_out"][name]
    if IN_FLOAT32:
        assert found["held_out"]["loss"] == close(expected["held_out"]["loss"])
        assert found["held_out"]["bits_per_byte"] == close(expected["held_out"]["bits_per_byte"])
