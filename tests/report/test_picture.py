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


@pytest.mark.parametrize("several", [False, True])
def test_a_picture_is_drawn(home: Path, tmp_path: Path, several: bool) -> None:
    extra("matplotlib")
    write_log(home, "a", pretraining("a", resume_at=40))
    write_log(home, "b", pretraining("b", worse=0.2) if several else reinforcement("b"))
    facts = [read_facts(Home(home), name) for name in ("ab" if several else "b")]
    path = draw_picture(facts, tmp_path / "a $b$.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as failed:
        require_matplotlib()
    assert "mlxchat[report]" in failed.value.remedy
