"""The picture of a report: drawn by matplotlib where it is installed, and asked for where not."""

from pathlib import Path

import pytest
from support.extras import extra
from support.logs import pretraining, reinforcement, write_log

from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.report import picture
from mlxchat.report.facts import read_facts
from mlxchat.report.picture import draw_picture, require_matplotlib
from mlxchat.report.write import write_report


@pytest.mark.parametrize("several", [False, True])
def test_a_picture_is_drawn(home: Path, tmp_path: Path, several: bool) -> None:
    extra("matplotlib")
    write_log(home, "a", pretraining("a", resume_at=40))
    write_log(home, "b", pretraining("b", worse=0.2) if several else reinforcement("b"))
    facts = [read_facts(Home(home), name) for name in ("ab" if several else "b")]
    path = tmp_path / "a $b$.png"
    draw_picture(facts, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_only_a_picture_of_a_report_is_replaced(home: Path, tmp_path: Path) -> None:
    extra("matplotlib")
    write_log(home, "a", pretraining("a"))
    for _ in range(2):
        written = write_report(Home(home), ["a"], tmp_path, png=True)
    assert written.picture == tmp_path / "a.png"
    (tmp_path / "holiday.png").write_bytes(b"\x89PNG of the sea")
    with pytest.raises(ConfigError, match="not replaced"):
        write_report(Home(home), ["a"], tmp_path / "holiday.html", png=True)
    assert not (tmp_path / "holiday.html").exists()
    with pytest.raises(ConfigError, match="name of a picture"):
        write_report(Home(home), ["a"], tmp_path / "a.png", png=True)


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as failed:
        require_matplotlib()
    assert "mlxchat[report]" in failed.value.remedy
