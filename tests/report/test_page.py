"""The page of a report: complete, self-contained, and safe whatever a run has said."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.logs import (
    BEGAN,
    HOSTILE,
    evaluated,
    pretraining,
    reinforcement,
    saved_run,
    started,
    stepped,
    write_log,
)
from support.task_scores import put_results, result
from typer.testing import CliRunner

from mlxchat.checkpoint.digests import model_digest
from mlxchat.cli.app import app
from mlxchat.errors import NotFound
from mlxchat.home import Home
from mlxchat.report.places import find_run
from mlxchat.report.scores import beside_each_other, kept_results
from mlxchat.report.write import write_report
from mlxchat.telemetry.events import Ended, Sampled, event_to_json

VOID = {"meta", "link", "input", "br", "img"}


class Parsed(HTMLParser):
    """A page: its elements, whether they are balanced, and its text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.data = "", ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script" and data.startswith('{"generator"'):
            self.data = data
        elif not self._open or self._open[-1] not in ("script", "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(home: Path, *names: str) -> tuple[Parsed, dict[str, Any]]:
    page = write_report(Home(home), names).path.read_text("utf-8")
    parsed = Parsed(page)
    return parsed, json.loads(parsed.data)


def test_a_run_is_shown_whole(home: Path) -> None:
    write_log(home, "run", pretraining("run", resume_at=40))
    page, data = report(home, "run")
    for text in ("500k parameters", "Apple M9", "1.02", "4,096", "0.21", "Resumed at step 40"):
        assert text in page.text, text
    keys = [svg.get("data-chart") for svg in page.of("svg") if svg.get("data-chart")]
    assert keys == ["bits", "loss", "core", "rate", "norm", "speed", "memory"]
    [run] = data["runs"]
    assert run["bits_per_byte"] == pytest.approx(1.02)
    assert run["series"]["loss"]["step"] == list(range(1, 101))
    assert run["resumes"][0]["step"] == 40
    assert len(run["series"]["bits_per_byte"]["value"]) == 10
    assert page.text.count("Python 3.12.3, macOS 26.1, arm64") == 1  # in both its processes
    assert run["software"] == ["Python 3.12.3, macOS 26.1, arm64"]


def test_what_a_run_said_cannot_become_markup(home: Path) -> None:
    write_log(home, "run", pretraining("run"))
    page, _ = report(home, "run")
    assert "<script>window.hacked = 1</script>" in page.text
    assert "\x1b" not in page.text
    assert [attributes for attributes in page.of("script") if attributes] == [
        {"type": "application/json", "id": "data"}
    ]
    assert len(page.of("script")) == 2 and not page.of("img")
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_nothing_is_asked_for_from_outside(home: Path) -> None:
    write_log(home, "run", pretraining("run"))
    page, _ = report(home, "run")
    text = write_report(Home(home), ["run"]).path.read_text("utf-8")
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset")
    ]
    assert addresses == ["data:,"]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", text)


def test_runs_are_laid_over_each_other(home: Path) -> None:
    for name, worse in (("a", 0.0), ("b", 0.3), ("c", -0.1)):
        write_log(home, name, pretraining(name, worse=worse))
    page, data = report(home, "a", "b", "c")
    assert [run["name"] for run in data["runs"]] == ["a", "b", "c"]
    assert "1× (baseline)" in page.text and "at least 1×" in page.text
    [loss] = [svg for svg in page.of("svg") if svg.get("data-chart") == "loss"]
    assert loss["data-series"] == "loss loss_smoothed"
    colours = {
        attributes["class"]
        for attributes in page.of("path")
        if (attributes.get("class") or "").startswith("line ")
    }
    assert {"line c0 d0", "line c1 d1", "line c2 d2"} <= colours
    assert (Home(home).reports / "a_and_b_and_c.html").exists()


def test_a_run_that_diverged_has_no_average_there(home: Path) -> None:
    """The average of the finite losses goes on, as if nothing had happened."""
    losses = [3.0, 2.0, float("nan"), float("nan")]
    steps = [stepped(number, loss) for number, loss in enumerate(losses, 1)]
    write_log(home, "run", [started("run"), *steps])
    _, data = report(home, "run")
    [run] = data["runs"]
    assert run["series"]["loss_smoothed"]["value"] == [3.0, pytest.approx(2.5, abs=0.5), None, None]


def test_many_runs_are_compared_in_tables_that_paper_holds(home: Path) -> None:
    names = [f"run-{number}" for number in range(12)]
    for name in names:
        write_log(home, name, pretraining(name, 20))
    page, _ = report(home, *names)
    text = write_report(Home(home), names).path.read_text("utf-8")
    [figures] = re.findall('<section class="figures">(.*?)</section>', text)
    heads = [head.count('scope="col"') - 1 for head in re.findall("<thead>.*?</thead>", figures)]
    assert heads == [5, 5, 2]
    assert "12 runs compared" in page.text and "run-0, run-1, …" in page.text


def test_a_run_without_samples_takes_no_room_beside_others(home: Path) -> None:
    write_log(home, "a", pretraining("a", 20))
    write_log(home, "b", pretraining("b", 10))
    write_log(home, "c", [*pretraining("c", 20), Sampled(BEGAN, 20, "Only c says", " this")])
    text = write_report(Home(home), ["a", "b", "c"]).path.read_text("utf-8")
    samples = text[text.index("Samples at the end") :].split("</section>")[0]
    assert "<h4>a</h4>" in samples and "<h4>b</h4>" not in samples
    last = samples.split('class="prompt"')[-1]
    assert "Only c says" in last and last.count("<h4>") == 1


def test_reinforcement_learning_shows_what_counts_there(home: Path) -> None:
    write_log(home, "rl", reinforcement("rl"))
    page, data = report(home, "rl")
    keys = [svg.get("data-chart") for svg in page.of("svg") if svg.get("data-chart")]
    assert keys[:5] == ["pass_1", "pass_k", "reward", "entropy", "length"]
    assert "pass@8" in page.text and "reward 1" in page.text
    assert {label.get("for") for label in page.of("label")} == {
        "x-step",
        "x-time",
        "scale-lin",
        "scale-log",
    }
    series = data["runs"][0]["series"]
    assert series["pass_1"]["low"][0] < series["pass_1"]["value"][0] < series["pass_1"]["high"][0]


@pytest.mark.parametrize("name", ["classic", "modern", "sft"])
def test_a_saved_run_has_settings_parameters_and_command(home: Path, name: str) -> None:
    run = saved_run(home, name)
    page, _ = report(home, run)
    for text in ("command that repeats it", "--fresh", "derived", "token embedding", "sha256 of"):
        assert text in page.text, text
    assert "To resume it" not in page.text  # nothing says that it has ended


def test_how_to_resume_a_run_that_was_stopped_is_said(home: Path) -> None:
    run = saved_run(home, "classic")
    (Home(home).log(run).parent / "status.json").unlink()
    with Home(home).log(run).open("a") as log:
        log.write(event_to_json(Ended(BEGAN, 8, "interrupted")) + "\n")
    page, data = report(home, run)
    assert data["runs"][0]["state"] == "interrupted"
    assert "classic was stopped" not in page.text and "This run was stopped at step 8" in page.text
    assert f"To resume it: mlxchat train --resume {run}" in page.text


def test_the_verdicts_of_an_evaluation_have_intervals(home: Path) -> None:
    run = saved_run(home, "classic")
    folder = Home(home).base_evaluations
    folder.mkdir()
    lines = [{"task": "copa", "index": n, "right": n < 60} for n in range(100)]
    path = folder / f"{run}_000008_12345678.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page, _ = report(home, run)
    assert "60.0% (50.2% to 69.1%)" in page.text
    os.utime(path, (0, 0))  # of an earlier run of that name
    page, _ = report(home, run)
    assert "CORE by task" not in page.text
    digest = model_digest(Home(home).run(run) / "step_000008")
    path = path.rename(folder / f"{run}_000008_12345678_of_{digest}.jsonl")
    page, _ = report(home, run)
    assert "CORE by task" in page.text  # the weights count, and not the time
    path = path.rename(folder / f"{run}_000008_12345678_of_0a0b0c0d.jsonl")
    os.utime(path)
    page, _ = report(home, run)
    assert "CORE by task" not in page.text


def test_that_nothing_tells_whose_an_evaluation_is_is_said(home: Path) -> None:
    run = saved_run(home, "classic")
    folder = Home(home).base_evaluations
    folder.mkdir()
    (folder / f"{run}_000008_12345678_of_0a0b0c0d.jsonl").touch()
    (Home(home).run(run) / "step_000008" / "SHA256SUMS").write_text("x")
    page, _ = report(home, run)
    assert "SHA256SUMS is damaged" in page.text and "CORE by task" not in page.text


def test_what_was_right_of_tasks_is_in_the_page(home: Path) -> None:
    run = saved_run(home, "classic")
    limited = result("gsm8k", 1, 10, max_problems=10, max_tokens=64, temperature=0.0, random=0.0)
    path = put_results(Home(home), run, 8, result(), limited)
    page, data = report(home, run)
    for text in ("Tasks", "60.0% (50.2% to 69.1%)", "first 10 problems, greedy, up to 64 tokens"):
        assert text in page.text, text
    easy, written = data["runs"][0]["tasks"]
    assert (easy["step"], easy["task"], easy["right"], easy["asked"]) == (8, "arc-easy", 60, 100)
    assert easy["low"] < easy["score"] < easy["high"] and written["max_problems"] == 10
    path.write_text(path.read_text().replace("arc-easy", "<script>hacked()</script>"))
    page, data = report(home, run)
    assert "<script>hacked()</script>" in page.text and len(page.of("script")) == 2
    path.write_text("[")
    page, data = report(home, run)
    assert "is damaged" in page.text and data["runs"][0]["tasks"] == []


def test_tasks_are_compared_by_results_of_equal_settings(home: Path) -> None:
    names = [saved_run(home, name) for name in ("classic", "modern")]
    few = {"right": 10, "asked": 20, "max_problems": 20}
    put_results(Home(home), names[0], 8, result(), result(**few))
    put_results(Home(home), names[1], 8, result(**{**few, "right": 15}), result("mmlu", 30))
    write_report(Home(home), names)
    text = (Home(home).reports / f"{'_and_'.join(names)}.html").read_text("utf-8")
    [figures] = re.findall('<section class="figures">(.*?)</section>', text)
    [row] = [part for part in figures.split("<tr>") if "arc-easy" in part]
    assert "50.0% (29.9% to 70.1%) of 20" in row and "<strong>75.0%" in row
    [row] = [part for part in figures.split("<tr>") if "mmlu" in part]
    assert "—" in row and "<strong>" not in row
    put_results(Home(home), names[0], 8, result("mmlu", 9, 10, max_problems=10))
    runs = [kept_results(Home(home), find_run(Home(home), name), [8])[0] for name in names]
    of_mmlu = beside_each_other(runs)["mmlu"]
    assert [each and each.asked for each in of_mmlu] == [10, 100]  # there is nothing in common


def test_the_settings_of_runs_are_compared(home: Path) -> None:
    names = [saved_run(home, name) for name in ("classic", "modern")]
    page, _ = report(home, *names)
    differ = page.text[page.text.index("Settings that differ") :]
    assert "embedding_lr" in differ.split("Settings that are the same")[0]
    assert "num_iterations" in differ.split("Settings that are the same")[1]


def test_without_its_log_a_run_has_the_curves_of_its_checkpoint(home: Path) -> None:
    run = saved_run(home, "classic")
    Home(home).log(run).unlink()
    page, data = report(home, run)
    assert "Its log cannot be read" in page.text
    assert data["runs"][0]["seconds"] > 0
    series = data["runs"][0]["series"]
    assert series["loss_smoothed"]["step"] and "loss" not in series  # it is an average already


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"\x00" * 5000, b'{"event": "started"}\n', b"[" * 100_000 + b"\n"],
)
def test_a_damaged_log_is_told(home: Path, content: bytes) -> None:
    write_log(home, "run", [], content)
    page, data = report(home, "run")
    assert data["runs"][0]["series"] == {}
    if content.strip():
        assert "cannot be read" in page.text or content.startswith(b"\x00")


def test_strange_numbers_are_drawn(home: Path) -> None:
    losses = [float("nan"), 1e39, -1e39, 0.0, float("inf"), 1e-300]
    events = [started("run", total=2**62)]
    events += [stepped(2**60 + n, loss, seconds=-1e10) for n, loss in enumerate(losses)]  # type: ignore[misc]
    events += [evaluated(2**60, float("nan")), evaluated(2**60 + 1, 0.0)]  # type: ignore[list-item]
    write_log(home, "run", events)
    report(home, "run")


def test_a_run_that_goes_on_says_so(home: Path) -> None:
    path = write_log(home, "run", pretraining("run", 60, end=False))
    last = path.read_text().splitlines()[-1]
    assert "ended" not in last
    page, _ = report(home, "run")
    assert "has not ended. It was last heard of on" in page.text
    assert "at step 60 of 60" in page.text


def test_a_long_run_makes_a_small_page(home: Path) -> None:
    write_log(home, "run", pretraining("run", 6_000))
    written = write_report(Home(home), ["run"])
    assert written.path.stat().st_size < 900_000  # which more steps add nothing to


def test_an_unknown_run_is_an_error_that_names_others(home: Path) -> None:
    with pytest.raises(NotFound, match="no run called a"):
        write_report(Home(home), ["a"])
    write_log(home, "resumed", pretraining("resumed"))
    with pytest.raises(NotFound) as failed:
        write_report(Home(home), ["resume"])
    assert failed.value.remedy == "Did you mean resumed?"


# ==== The command ================================================================================


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    return result.exit_code, result.output


def test_the_command_says_where_the_report_is(home: Path, tmp_path: Path) -> None:
    write_log(home, "run", pretraining("run"))
    code, said = invoke("run")
    assert (code, said.strip()) == (0, f"The report: {home / 'reports' / 'run.html'}")
    code, said = invoke("run", "--json", "--output", str(tmp_path))
    facts = json.loads(said)
    assert facts["report"] == str(tmp_path / "run.html")
    assert facts["runs"][0]["step"] == 100
    code, _ = invoke("run", "--output", str(tmp_path))  # the report is replaced
    assert code == 0


def test_another_file_is_not_replaced(home: Path, tmp_path: Path) -> None:
    write_log(home, "run", pretraining("run"))
    other = tmp_path / "thesis.html"
    other.write_text("all my work")
    result = CliRunner().invoke(app, ["report", "run", "--output", str(other)])
    assert result.exit_code and "is not a report" in str(result.exception)
    assert other.read_text() == "all my work"


def test_hostile_names_are_no_paths(home: Path) -> None:
    write_log(home, "run", pretraining("run"))
    for name in ("../run", "", ".", HOSTILE):
        with pytest.raises(NotFound):
            write_report(Home(home), [name])
