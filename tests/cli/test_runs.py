"""`mlxchat runs`, `info --model-tag` and `data remove`, as they are typed."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.logs import reinforcement, write_log
from support.program import Program
from support.run_homes import MadeRun, put_adapter, put_evaluation
from support.task_scores import put_results, result

from mlxchat.checkpoint import store
from mlxchat.cli import questions
from mlxchat.disk import disk_use
from mlxchat.home import Home
from mlxchat.report.places import all_runs, find_run


@pytest.fixture
def place(home: Path) -> Home:
    place = Home(home)
    MadeRun("fox").put(place)
    put_evaluation(place, "fox", 40)
    MadeRun("hen", settings={"dropout": 0.1}, bits=0.1, began=1_790_100_000.0).put(place)
    return place


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is typed at a terminal."""
    typed: list[str] = []
    monkeypatch.setattr(questions, "can_ask", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: typed.pop(0))
    return typed


def test_list(program: Program, place: Home) -> None:
    code, said, _ = program("runs", "list")
    assert code == 0
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "fox", "hen", "2"]
    assert "d2, 524k" in lines[1] and "1m 20s" in lines[1] and lines[1].endswith("finished")
    code, said, _ = program("runs", "list", "--json")
    first, second = json.loads(said)
    assert (first["name"], first["state"], first["step"]) == ("fox", "finished", 40)
    assert second["bits_per_byte"] == 1.1 + 1 / 41 and len(first["evaluation_files"]) == 2


def test_the_total_counts_what_copies_share_once(program: Program, place: Home) -> None:
    (place.runs / "fox" / "step_000040" / "model.safetensors").write_bytes(bytes(5 * 10**6))
    assert program("runs", "list")[1].splitlines()[-1] == "2 runs, 5.0 MB"
    assert program("runs", "copy", "fox", "fox2")[0] == 0
    lines = program("runs", "list")[1].splitlines()
    assert sum("5.0 MB" in line for line in lines[:-1]) == 2  # of each the size is its own
    assert lines[-1] == "3 runs, 5.1 MB; what copies share counts once"


def test_remove_says_what_is_freed(program: Program, place: Home, tmp_path: Path) -> None:
    (place.runs / "fox" / "step_000040" / "model.safetensors").write_bytes(bytes(5 * 10**6))
    moved = tmp_path / "moved"
    shutil.move(place.runs / "fox" / "step_000030", moved)
    (place.runs / "fox" / "step_000030").symlink_to(moved)
    (moved / "model.safetensors").write_bytes(bytes(3 * 10**6))
    assert program("runs", "copy", "fox", "fox2")[0] == 0
    lines = program("runs", "remove", "fox", "--yes")[1].splitlines()
    assert "5.0 MB of that stay on the disk, since copies share them." in lines[1]
    assert "3.0 MB of that stay where symbolic links lead." in lines[2]
    assert re.fullmatch(r"Removed 1 run and freed \d\d\.\d kB\.", lines[3])
    assert (moved / "model.safetensors").exists()
    removed = json.loads(program("runs", "remove", "fox2", "--yes", "--json")[1])
    [fox2] = removed["removed"]  # shares the step that was moved, which stays
    assert removed["freed"] == removed["bytes"] - fox2["shared"] and fox2["shared"] > 3 * 10**6


def test_list_of_an_empty_home(program: Program) -> None:
    assert "has no runs" in program("runs", "list")[1]
    assert program("runs", "list", "--json")[1] == "[]\n"


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_no_line_is_wider_than_the_terminal(
    program: Program, place: Home, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("mlxchat.ui.output.Output.isatty", lambda _: True)
    MadeRun("a-run-with-a-name-of-its-own", settings={"matrix_lr": 0.1}, ended="failed").put(place)
    put_adapter(place, "fox-lora", place.runs / "fox" / "step_000040")
    put_results(place, "fox", 40, result("arc-challenge", 600, 1172, max_problems=1172))
    for command in (["list"], ["compare", "fox", "hen", "fox-lora"], ["show", "fox"]):
        code, said, _ = program("runs", *command)
        copied = ("mlxchat ", str(place.root))  # whole, so that the terminal breaks them
        lines = [line for line in _plain(said.splitlines()) if not line.startswith(copied)]
        assert code == 0 and max(map(len, lines)) <= columns, command


def _plain(lines: list[str]) -> list[str]:
    from rich.text import Text

    return [Text.from_ansi(line).plain for line in lines]


def test_show(program: Program, place: Home) -> None:
    code, said, _ = program("runs", "show", "fox")
    assert code == 0
    for part in (
        "Finished on",
        "classic, 2 layers",
        "Settings",
        "Derived",
        "step 40",
        "\nThe fox → saw 40 hens.\n",
        "Python 3.12.3, macOS 26.1, arm64",
    ):
        assert part in said
    assert "Defaults" not in said and "Defaults" in program("runs", "show", "fox", "--all")[1]
    assert said.splitlines()[-1].startswith("mlxchat train --dataset builtin")
    shown = json.loads(program("runs", "show", "fox", "--json")[1])
    assert shown["settings"]["depth"] == {"value": "2", "origin": "given"}
    assert shown["starts"][0]["python"] == "3.12.3"
    assert shown["samples"][0]["text"] == " saw 40 hens." and len(shown["checkpoints"]) == 2
    code, _, told = program("runs", "show", "fx")
    assert code == 1 and "Did you mean fox?" in told
    assert "Did you mean fox?" in program("runs", "show", "FOX")[2]
    assert "called ''." in program("runs", "show", "")[2]


def test_bytes_that_removed_runs_share_count_once(program: Program, place: Home) -> None:
    assert program("runs", "copy", "fox", "fox2")[0] == 0
    one = disk_use(find_run(place, "fox").paths).bytes
    code, said, _ = program("runs", "remove", "fox", "fox2", "--yes", "--json")
    assert code == 0
    assert one < json.loads(said)["bytes"] < 2 * one  # logs are copied, saved steps are linked


def test_compare(program: Program, place: Home) -> None:
    code, said, _ = program("runs", "compare", "fox", "hen")
    assert code == 0 and "Better: fox, 0.1000 bits per byte (8.9%) below hen." in said
    assert "dropout" in said and "0 *" in said
    compared = json.loads(program("runs", "compare", "fox", "hen", "--json")[1])
    assert compared["better"] == "fox" and compared["differences"]["dropout"]["hen"] == "0.1"
    assert program("runs", "compare", "fox", "fox")[0] == 2
    put_step(place.runs / "bare", 3)
    code, said, _ = program("runs", "compare", "fox", "bare")
    assert code == 0 and "The settings of bare are not known." in said


def test_what_was_right_of_tasks_is_shown_and_compared(program: Program, place: Home) -> None:
    limited = result("gsm8k", 3, 10, random=0.0, max_problems=10, max_tokens=64, temperature=0.0)
    put_results(place, "fox", 40, result(), limited)
    put_results(place, "fox", 30, result("mmlu", 20))
    put_results(place, "hen", 30, result(right=70))
    said = program("runs", "show", "fox")[1]
    assert said.index("Tasks at step 30") < said.index("Tasks at step 40")
    assert "60.0% (50.2% to 69.1%) of 100 · guessing 25.0% · likeliest letter, float32" in said
    assert "first 10 problems, greedy, up to 64 tokens, float32" in said
    shown = json.loads(program("runs", "show", "fox", "--json")[1])
    assert [(each["step"], each["task"]) for each in shown["tasks"]] == [
        (30, "mmlu"),
        (40, "arc-easy"),
        (40, "gsm8k"),
    ]
    assert shown["tasks"][1]["score"] == 0.6 and shown["tasks"][1]["low"] < 0.51
    assert shown["tasks"][1]["centered"] == pytest.approx(0.35 / 0.75)
    said = program("runs", "compare", "fox", "hen")[1]
    [row] = [line for line in said.splitlines() if line.startswith("arc-easy")]
    assert "60.0% (50.2% to 69.1%) of 100  " in row
    assert "70.0% (60.4% to 78.1%) of 100, step 30" in row
    assert "gsm8k" in said and "mmlu" not in said
    first, second = json.loads(program("runs", "compare", "fox", "hen", "--json")[1])["runs"]
    assert len(first["tasks"]) == 3 and second["tasks"][0]["right"] == 70


def test_evaluations_of_an_earlier_model_of_that_name_are_told_apart(
    program: Program, place: Home
) -> None:
    assert re.search(r"evaluations +2 files$", program("runs", "show", "fox")[1], re.MULTILINE)
    [verdicts, _] = put_evaluation(place, "fox", 40)
    other = verdicts.rename(place.base_evaluations / "fox_000040_0a1b2c3d_of_00000000.jsonl")
    said = program("runs", "show", "fox")[1]
    assert "1 file, and 1 of an earlier model of that name" in said
    shown = json.loads(program("runs", "show", "fox", "--json")[1])
    assert shown["evaluations_of_other_models"] == [str(other)]
    put_evaluation(place, "fox", 20)  # which is not saved any more: nothing tells its model
    assert "3 files, and 1 of an earlier" in program("runs", "show", "fox")[1]


def test_results_that_cannot_be_read_are_said(program: Program, place: Home) -> None:
    put_results(place, "fox", 40, result()).write_text("[")
    code, said, _ = program("runs", "show", "fox")
    assert code == 0 and "chat_eval" in said and "is damaged" in said
    shown = json.loads(program("runs", "show", "fox", "--json")[1])
    assert shown["tasks"] == [] and "is damaged" in shown["unread"]


def test_rename_and_copy(program: Program, place: Home) -> None:
    assert program("runs", "rename", "fox", "wolf")[1] == "fox is now called wolf.\n"
    assert "wolf2 is a copy of wolf" in program("runs", "copy", "wolf", "wolf2")[1]
    assert {run.name for run in all_runs(place)} == {"hen", "wolf", "wolf2"}
    code, _, told = program("runs", "rename", "wolf", "hen")
    assert code == 1 and "already a run called hen" in told
    with store.locked(place.runs / "hen"):
        code, _, told = program("runs", "rename", "hen", "cow")
    assert code == os.EX_TEMPFAIL and "it saves its work first" in told


def test_remove_says_what_and_asks(program: Program, place: Home, answers: list[str]) -> None:
    assert program("runs", "remove", "fox", "--json")[0] == 1
    answers += ["n", "", "yes"]
    code, said, _ = program("runs", "remove", "fox")
    assert code == 1 and "2 checkpoints, its log, 2 files of evaluations; " in said
    assert "Nothing was removed." in said
    assert program("runs", "remove", "fox")[0] == 1
    code, said, _ = program("runs", "remove", "fox")
    assert code == 0 and "Removed 1 run and freed " in said
    assert [run.name for run in all_runs(place)] == ["hen"]


def test_remove_without_a_terminal_needs_yes(program: Program, place: Home) -> None:
    code, said, told = program("runs", "remove", "fox", "hen")
    assert code == 1 and "fox: 2 checkpoints" in said and "--yes" in told
    code, said, _ = program("runs", "remove", "fox", "hen", "--yes", "--json")
    removed = json.loads(said)
    assert code == 0 and [run["name"] for run in removed["removed"]] == ["fox", "hen"]
    assert all_runs(place) == []


def test_export(program: Program, place: Home, tmp_path: Path) -> None:
    out = tmp_path / "fox.csv"
    code, said, _ = program("runs", "export", "fox", "--out", str(out))
    assert code == 0 and said == f"Wrote 41 lines to {out}.\n"
    assert len(out.read_text().splitlines()) == 42
    code, _, told = program("runs", "export", "fox", "--out", str(out))
    assert code == 1 and "already exists" in told
    code, said, _ = program("runs", "export", "fox", "--out", str(tmp_path / "b"), "--json")
    assert json.loads(said) == {"path": str(tmp_path / "b"), "rows": 41}


# ==== info --model-tag ====


def write_model(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    shape = {"num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3}
    fields |= {"model_type": "nanochat", "vocab_size": 512, **shape}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "SHA256SUMS").unlink()


def test_info_describes_the_run_and_no_other(program: Program, place: Home) -> None:
    MadeRun("tuned", stage="fine-tuning").put(place)
    for name in ("fox", "tuned"):
        code, said, _ = program("info", "--model-tag", name, "--json")
        facts = json.loads(said)
        assert code == 0 and (facts["tag"], facts["saved_step"]) == (name, 40)
        assert facts["plan"]["model"]["n_layer"] == 2 and facts["plan"]["num_iterations"] == 40
    code, said, _ = program("info", "--model-tag", "fox", "--memory-limit", "2GB", "--json")
    assert json.loads(said)["memory_limit_given"] == "2GB"
    code, _, told = program("info", "--model-tag", "fox", "--depth", "3")
    assert code == 1 and "--depth (2 -> 3)" in told
    code, _, told = program("info", "--model-tag", "tuned", "--depth", "3")
    assert code == 1 and "run of another stage" in told
    code, _, told = program("info", "--model-tag", "fix")
    assert code == 1 and "Did you mean fox?" in told
    assert "Did you mean fox?" in program("runs", "show", "FOX")[2]
    assert "called ''." in program("runs", "show", "")[2]
    new = ["--depth", "1", "--dataset", "builtin", "--vocab-size", "300", "--max-seq-len", "64"]
    code, said, _ = program("info", "--model-tag", "new", *new, "--json")
    assert code == 0 and json.loads(said)["plan"]["model"]["n_layer"] == 1


def test_info_describes_a_model_that_was_not_trained_here(program: Program, place: Home) -> None:
    write_model(put_step(place.runs / "small", 7, quantized=True))
    code, said, _ = program("info", "--model-tag", "small")
    assert code == 0 and "classic, 3 layers of width 192" in said
    assert "quantized to 4 bits" in said and "Parameters" in said
    facts = json.loads(program("info", "--model-tag", "small", "--json")[1])
    assert (facts["saved_step"], facts["bits"], facts["model"]["n_layer"]) == (7, 4, 3)
    code, _, told = program("info", "--model-tag", "small", "--depth", "2")
    assert code == 1 and "has no training state" in told


# ==== data remove, data fetch --replace ====


@pytest.fixture
def own_text(program: Program, tmp_path: Path) -> Path:
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps({"text": f"Fox {i}"}) + "\n" for i in range(9)))
    assert program("data", "fetch", "--from", str(source))[0] == 0
    return source


def test_data_remove(program: Program, place: Home, own_text: Path, answers: list[str]) -> None:
    MadeRun("on-mine", settings={"dataset": "mine"}, steps=20, saved=(20,), ended="failed").put(
        place
    )
    MadeRun("done", settings={"dataset": "mine"}).put(place)
    place.own_tokenizer("mine").mkdir()
    (place.own_tokenizer("mine") / "tokenizer.json").write_bytes(bytes(2 * 10**6))
    (place.data("mine") / "shared.parquet").write_bytes(bytes(10**6))
    (place.root / "kept.parquet").hardlink_to(place.data("mine") / "shared.parquet")
    answers += ["n"]
    code, said, _ = program("data", "remove", "mine")
    assert (
        code == 1 and "mine: 3 shards, 3.0 MB." in said and "Its tokenizer is removed too." in said
    )
    assert "cannot be resumed without it: on-mine." in said
    assert "1.0 MB of that stay on the disk, since copies share them." in said
    code, said, _ = program("data", "remove", "mine", "--yes", "--json")
    removed = json.loads(said)
    assert code == 0 and removed["unfinished_runs"] == ["on-mine"]
    assert removed["bytes"] - removed["freed"] == removed["shared"] == 10**6
    assert not place.data("mine").exists() and not place.own_tokenizer("mine").exists()
    code, _, told = program("data", "remove", "mine", "--yes")
    assert code == 1 and "There are none." in told


@pytest.mark.parametrize(
    ("saved", "reads"), [((20,), "on mine"), ((), "and has saved nothing yet")]
)
def test_a_dataset_in_use_stays(
    saved: tuple[int, ...],
    reads: str,
    program: Program,
    place: Home,
    own_text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlxchat.report.runs

    MadeRun("busy", settings={"dataset": "mine"}, steps=20, saved=saved, ended=None).put(place)
    monkeypatch.setattr(mlxchat.report.runs, "run_state", lambda *_: "running")
    for command in (["remove", "mine", "--yes"], ["fetch", "--from", str(own_text), "--replace"]):
        code, _, told = program("data", *command)
        assert code == os.EX_TEMPFAIL and f"busy is being trained {reads}" in told
    assert place.data("mine").exists()


def test_data_fetch_replaces_own_text(program: Program, place: Home, own_text: Path) -> None:
    before = {path.name: path.read_bytes() for path in place.data("mine").iterdir()}
    own_text.write_text(own_text.read_text().replace("Fox", "Hen"))
    code, _, told = program("data", "fetch", "--from", str(own_text))
    assert code == 1 and "--replace" in told
    own_text.with_suffix(".txt").write_text("one")
    for source in (own_text.with_suffix(".txt"), own_text.with_name("missing.txt")):
        assert program("data", "fetch", "--from", str(source), "--dataset", "mine", "--replace")[0]
    assert {path.name: path.read_bytes() for path in place.data("mine").iterdir()} == before
    place.own_tokenizer("mine").mkdir()
    code, said, _ = program("data", "fetch", "--from", str(own_text), "--replace")
    assert code == 0 and "9 documents" in said and "tokenizer train --dataset mine" in said
    assert {path.name: path.read_bytes() for path in place.data("mine").iterdir()} != before
    assert program("data", "fetch", "--replace")[0] == 2


def test_nobody_is_asked_who_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert not questions.can_ask()


def test_pass_1_has_the_interval_of_its_evaluation(program: Program, place: Home) -> None:
    write_log(place.root, "sums", reinforcement("sums"))
    write_log(place.root, "more", reinforcement("more", steps=10))
    said = program("runs", "show", "sums")[1]
    assert "95.2% (85.2% to 105.2%) of held-out questions after step 20" in said
    said = program("runs", "compare", "sums", "more")[1]
    [row] = [line for line in said.splitlines() if line.startswith("pass@1")]
    assert "95.2% (85.2% to 105.2%)" in row and "90.9% (80.9% to 100.9%)" in row
