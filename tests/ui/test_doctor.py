"""The tables and the report of `mlxchat doctor`, and its command."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from support.planted_host import HEALTHY, PlantedHost, planted_mac
from support.program import Program

from mlxchat.cli import doctor
from mlxchat.doctor.check import Finding
from mlxchat.doctor.examination import CHECKS, Examination, examine
from mlxchat.doctor.host import Host
from mlxchat.ui.doctor import examination_markdown, examination_table, show_examination, summary

WRONG = {"compare_rotation": HEALTHY["compare_rotation"].model_copy(update={"value": 0.3})}


def facts_of(host: Host) -> Examination:
    return Examination.on(host, [e for e in examine(host) if isinstance(e, Finding)], 41.0)


@pytest.fixture
def wrong(tmp_path: Path) -> Examination:
    """A machine that rotates wrongly and has little disk."""
    return facts_of(PlantedHost(tmp_path, WRONG, free_disk=2 * 2**30))


def drawn(facts: Examination, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(examination_table(facts, width))
    return console.file.getvalue()


def shown(facts: Examination, width: int) -> str:
    """What is printed to a terminal, which breaks long lines itself."""
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", str(width))
        patched.setenv("TERM", "dumb")
        show_examination(facts, terminal)
    return "\n".join(line.rstrip() for line in terminal.getvalue().splitlines())


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("host", [PlantedHost, planted_mac])
def test_tables_fit_and_cut_nothing(host: type[Host], width: int, tmp_path: Path) -> None:
    facts = facts_of(host(tmp_path))
    text = drawn(facts, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    words = " ".join(text.split())
    for finding in facts.of("ok"):
        assert finding.check in text
        assert finding.measures.split()[0] in words
    assert ("Questions that only a Mac can answer" in text) == bool(facts.only_on_a_mac)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_what_is_wrong_is_taught(wrong: Examination, width: int) -> None:
    text = " ".join(drawn(wrong, width).split())
    start = text.index("failed")
    assert text[start:].startswith("failed rotation 3.0e-01 (wanted: at most 1e-05)")
    told = set(text[start:].split())
    assert set("It is largest in the forward pass. Do not trust models trained".split()) <= told
    assert "Affects: train," in text or width == 160  # where two columns share the lines


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("host", [PlantedHost, planted_mac])
def test_commands_to_paste_are_whole_and_alone_on_a_line(
    host: type[Host], width: int, tmp_path: Path
) -> None:
    facts = facts_of(host(tmp_path))
    remedies = {check.name: check.remedy for checks in CHECKS.values() for check in checks}
    failed = [
        finding.model_copy(update={"outcome": "failed", "remedy": remedies[finding.check]})
        for finding in facts.findings
    ]
    text = shown(facts.model_copy(update={"findings": tuple(failed)}), width)
    lines = [line.strip() for line in text.splitlines()]
    for command in (
        "uv python install 3.12",
        "python3 -c 'import platform; print(platform.machine())'",
        'pip install -U -e ".[cpu]"',
        'pip install "mlxchat[cpu]"',
        "sudo apt install libopenblas0",
        "sudo apt install g++",
        "pip install -U mlx",
        'pip install "mlxchat[cuda]"',
        "mlxchat checkpoints prune",
        *(["mlxchat doctor --report -"] if facts.only_on_a_mac else []),
    ):
        assert any(line == command or line.startswith(f"{command}  ") for line in lines), command


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_long_path_is_not_broken(width: int, tmp_path: Path) -> None:
    path = f"/home/{'a-long-name/' * 12}models"
    facts = facts_of(PlantedHost(tmp_path))
    [*others, last] = facts.findings
    last = last.model_copy(update={"value": path, "detail": f"It is full: {path}/x"})
    text = shown(facts.model_copy(update={"findings": (*others, last)}), width)
    assert {path, f"{path}/x"} <= set(text.splitlines())


def test_a_narrow_and_a_medium_table_say_it_in_order(wrong: Examination) -> None:
    for width in (40, 80):
        text = " ".join(drawn(wrong, width).split())
        text = text[text.index("failed rotation") :]
        order = [
            "The error of the compiled rotary",
            "It is largest in the forward pass.",
            "Do not trust",
            "Affects: train",
        ]
        places = [text.index(part) for part in order]
        assert places == sorted(places)


def test_the_summary_counts(wrong: Examination) -> None:
    assert summary(wrong) == "30 checks in 41s: 23 ok, 1 warning, 1 failed, 5 not here."


def test_the_report_is_a_table_and_what_to_do(wrong: Examination) -> None:
    lines = examination_markdown(wrong).splitlines()
    assert lines[0].startswith("**mlxchat ") and summary(wrong) in lines
    rows = [line for line in lines if line.startswith("| ")]
    assert all(line.count("|") - line.count(r"\|") == 6 for line in rows)
    names = [check.name for checks in CHECKS.values() for check in checks]
    assert [row.split(" | ")[0][2:] for row in rows if "**" not in row][1:] == names
    assert (
        "| rotation | failed | 3.0e-01. It is largest in the forward pass. | at most 1e-05 | "
        in "\n".join(rows)
    )
    todo = lines[lines.index("**To do**") :]
    assert [line.split(" ")[1] for line in todo if line.startswith("- ")] == ["rotation", "space"]
    assert "--model" not in "\n".join(lines)


def test_the_report_of_a_mac_has_what_only_it_can_tell(tmp_path: Path) -> None:
    text = examination_markdown(facts_of(planted_mac(tmp_path)))
    assert "**To do**" not in text
    assert "- Does caffeinate keep the Mac awake? awake, ok: kept awake" in text


@pytest.fixture
def run(
    wrong: Examination, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    monkeypatch.setattr(doctor, "examine_host", lambda host: wrong)
    return Program(monkeypatch, capsys, "doctor")


def test_the_command_fails_where_a_check_fails(run: Program) -> None:
    code, out, _ = run()
    assert code == 1
    assert "1 failed" in out.splitlines()[-1]


def test_the_command_succeeds_where_none_does(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = facts_of(PlantedHost(tmp_path, free_disk=2 * 2**30))
    monkeypatch.setattr(doctor, "examine_host", lambda host: healthy)
    code, out, _ = run()
    assert code == 0 and "1 warning, 0 failed" in out


def test_json_is_one_object(run: Program, wrong: Examination) -> None:
    code, out, _ = run("--json")
    assert code == 1
    assert Examination.model_validate(json.loads(out)) == wrong


def test_the_report_is_written_or_printed(run: Program, wrong: Examination, tmp_path: Path) -> None:
    code, out, _ = run("--report", str(tmp_path / "report.md"))
    assert code == 1 and "Arithmetic" in out
    assert (tmp_path / "report.md").read_text("utf-8") == examination_markdown(wrong) + "\n"
    _, out, _ = run("--report", "-")
    assert out == examination_markdown(wrong) + "\n"
    code, _, errors = run("--report", "-", "--json")
    assert code == 2 and "--json" in errors


def test_a_report_that_cannot_be_stored_is_refused_before_the_checks(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine_host", lambda host: pytest.fail("checks were made"))
    for report in (tmp_path, tmp_path / "missing" / "report.md"):
        code, _, errors = run("--report", str(report))
        assert code == 1 and "cannot be stored" in errors and "--report" in errors


def test_progress_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = doctor.examine_host(PlantedHost(tmp_path))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith(f"all checks: {len(facts.findings)} checks")
