"""Names that a Mac's disk takes for the same: in another case, or another Unicode form."""

import unicodedata
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.program import Program
from support.runs import CONFIG, run

from mlxchat.checkpoint.run_names import new_run, require_own_spelling
from mlxchat.config.sft import SftConfig
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.names import as_listed, composed, namesake, without_marks

ONE, TWO = (unicodedata.normalize(form, "Füchse é.parquet") for form in ("NFC", "NFD"))


def test_both_forms_of_a_letter_are_one() -> None:
    assert ONE != TWO and composed(ONE) == composed(TWO)
    assert as_listed([ONE, "other"], ["a", TWO]) == [TWO, "other"]
    assert without_marks(ONE) == without_marks(TWO) == "Fuchse e.parquet"


def test_a_namesake_differs_in_case_only(tmp_path: Path) -> None:
    assert namesake(tmp_path / "missing" / "d4") is None
    assert namesake(tmp_path / "d4") is None
    (tmp_path / "D4").mkdir()
    assert namesake(tmp_path / "d4") == tmp_path / "D4"
    assert namesake(tmp_path / "D4") is None
    (tmp_path / "d4").mkdir(exist_ok=True)
    if len(list(tmp_path.iterdir())) == 2:  # not on a Mac
        assert namesake(tmp_path / "d4") is None


@pytest.mark.parametrize("stage", ["pretraining", "fine-tuning"])
def test_a_run_cannot_be_named_like_another_but_for_case(tmp_path: Path, stage: str) -> None:
    home = Home(tmp_path)
    put_step(home.stage(stage) / "RUN", 2)
    with pytest.raises(MlxchatError, match="run differs from RUN, a run in") as raised:
        run(tmp_path, CONFIG)
    assert "`model_tag=RUN`" in raised.value.remedy
    assert not home.log("run").exists()
    with pytest.raises(MlxchatError, match="in case only") as raised:
        new_run(home, "Run", False, "to")
    assert "`to=RUN`" in raised.value.remedy
    assert new_run(home, "other", False, "to") == home.runs / "other"


def test_a_dry_run_fails_where_the_run_would(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_step(Home(home).runs / "D1", 2)
    program = Program(monkeypatch, capsys, "train", "--depth", "1", "--dataset", "builtin")
    for option in ("--dry-run", "--no-stay-awake"):
        code, _, errors = program(option)
        assert code == 1 and "d1 differs from D1" in errors and "--model-tag D1" in errors


def test_runs_of_linux_that_differ_in_case_are_still_two(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for tag in ("d4", "D4"):
        put_step(home.runs / tag, 2)
    for tag in ("d4", "D4"):
        require_own_spelling(home, tag, "model_tag")
    with pytest.raises(MlxchatError, match="already a run called D4"):
        new_run(home, "D4", False, "to")


def test_text_cannot_be_named_like_another_but_for_case(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Program(monkeypatch, capsys, "data", "fetch", "--from", str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("Some text.\n\nMore text.\n")
    Home(home).data("novels").mkdir(parents=True)
    for name, said in (
        ("Novels", "only in case"),
        ("ClimbMix", "another data"),
        ("BUILTIN", "another data"),
    ):
        code, _, errors = program("--dataset", name)
        assert code == 1 and said in errors, errors
    assert not Home(home).data("Novels").exists() or len(list(home.iterdir())) == 1


def test_text_is_named_after_its_file_in_either_form(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("NFC", "NFD"):
        path = tmp_path / unicodedata.normalize(form, "Füchse.jsonl")
        path.write_text('{"text": "Some text."}\n{"text": "More text."}\n')
        program = Program(monkeypatch, capsys, "data", "fetch", "--from", str(path))
        code, out, errors = program()
        assert (code == 0 and "--dataset Fuchse" in out) or "base_data_Fuchse" in errors
    assert [path.name for path in home.glob("base_data*")] == ["base_data_Fuchse"]


def test_a_setting_in_another_form_is_no_other_setting() -> None:
    then = SftConfig(data=[f"/x/{ONE}"], source="d4").model_dump(mode="json")
    assert SftConfig(data=[f"/x/{TWO}"], source="d4").differences(then) == []
    assert SftConfig(data=["/x/other"], source="d4").differences(then) != []
