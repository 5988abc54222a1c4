"""The examination as events, the finding of each, and that nothing of them names the user."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.planted_host import PlantedHost, planted_mac

from mlxchat.doctor import privacy
from mlxchat.doctor.check import Check, Finding, good
from mlxchat.doctor.examination import ALL_CHECKS, CHECKS, SECONDS, Examination, examine
from mlxchat.doctor.mac import QUESTIONS
from mlxchat.doctor.privacy import anonymous
from mlxchat.errors import BackendError
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Progressed

NAMES = [check.name for checks in CHECKS.values() for check in checks]


def checks(*names: str) -> dict[str, list[Check]]:
    return {
        "Topic": [
            Check(name, "It.", "any", "Do.", ("train",), lambda _: good("1")) for name in names
        ]
    }


def test_findings_come_between_their_progress(tmp_path: Path) -> None:
    ticks = map(float, range(100))
    clock = Clock(time_of_day=lambda: 5.0, seconds=lambda: next(ticks))
    events = list(examine(PlantedHost(tmp_path), checks("a", "b"), clock))
    assert [e.check if isinstance(e, Finding) else (e.task, e.done, e.total) for e in events] == [
        (ALL_CHECKS, 0, 2),
        ("a", 0, 1),
        "a",
        ("a", 1, 1),
        (ALL_CHECKS, 1, 2),
        ("b", 0, 1),
        "b",
        ("b", 1, 1),
        (ALL_CHECKS, 2, 2),
    ]
    [first, _] = [event for event in events if isinstance(event, Finding)]
    assert (first.topic, first.seconds, first.remedy, first.commands) == ("Topic", 1.0, "", ())
    assert all(e.time == 5.0 for e in events if isinstance(e, Progressed))


def test_every_check_has_a_finding(tmp_path: Path) -> None:
    findings = [e for e in examine(PlantedHost(tmp_path)) if isinstance(e, Finding)]
    assert [finding.check for finding in findings] == NAMES
    facts = Examination.on(PlantedHost(tmp_path), findings, 1.0)
    assert facts.only_on_a_mac == ()
    assert len(facts.of("ok")) + len(facts.of("not here")) == len(NAMES)


def test_a_mac_answers_what_only_a_mac_can_tell(tmp_path: Path) -> None:
    host = planted_mac(tmp_path)
    facts = Examination.on(host, [e for e in examine(host) if isinstance(e, Finding)], 1.0)
    answers = {answer.question: answer.answer for answer in facts.only_on_a_mac}
    assert len(answers) == len(QUESTIONS)
    fused = next(text for question, text in answers.items() if "fused" in question)
    assert fused.startswith("attention, ok: 10.0 ms")
    assert sum(text.startswith("By hand: ") for text in answers.values()) == 3
    for question in QUESTIONS:
        assert question.check in NAMES if question.check else question.how


def test_findings_do_not_name_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "getuser", lambda: "ada")
    monkeypatch.setenv("HF_TOKEN", "secret-7")
    monkeypatch.setenv("MLXCHAT_HOME", str(tmp_path))
    said = f"No {tmp_path}/models for ada in /Users/ada/x: secret-7 hf_abcDEF123"
    host = PlantedHost(tmp_path, {"compare_rotation": BackendError(said, said)})
    for event in examine(host):
        if isinstance(event, Finding):
            text = event.model_dump_json()
            assert "ada" not in text.replace("adam", "")
            assert not {"secret-7", "hf_abcDEF123", str(tmp_path)} & {
                word for word in (str(tmp_path), "secret-7", "hf_abcDEF123") if word in text
            }
    assert anonymous(said) == "No $MLXCHAT_HOME/models for USER in ~/x: TOKEN TOKEN"


def test_words_and_other_folders_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "getuser", lambda: "root")
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    monkeypatch.delenv("MLXCHAT_HOME")
    assert anonymous("the root of /root/.cache and /roots") == "the root of ~/.cache and /roots"


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(privacy, "getuser", unknown)
    assert anonymous("all is well") == "all is well"


def test_the_checks_load_no_arrays() -> None:
    """So that they say what is wrong where MLX does not load."""
    script = (
        "import sys, mlxchat.doctor.examination, mlxchat.ui.doctor\n"
        "assert not {'mlx', 'numpy', 'pyarrow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_this_machine_is_examined_in_two_minutes(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mlxchat", "doctor", "--json", "--report", str(tmp_path / "r.md")],
        capture_output=True,
        text=True,
        timeout=SECONDS + 30,
    )
    facts = json.loads(result.stdout)
    assert [finding["check"] for finding in facts["findings"]] == NAMES
    assert facts["seconds"] < 120
    failed = {f["check"]: f for f in facts["findings"] if f["outcome"] == "failed"}
    assert failed.keys() <= {"BLAS"}, failed  # a machine without AVX-512 may have none
    assert result.returncode == bool(failed)
    assert "all checks: " in result.stderr
    assert (tmp_path / "r.md").read_text("utf-8").count("\n| ") > len(NAMES)
