"""Reports in a real browser: Debian's Chromium, where there is one, by playwright."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.logs import pretraining, reinforcement, saved_run, write_log

from mlxchat.counts import duration, round_size
from mlxchat.home import Home
from mlxchat.report.page import LOOK
from mlxchat.report.write import write_report
from mlxchat.telemetry.events import Stepped

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as programs:
        running = programs.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class OpenedReport:
    """A report in the browser, all that it asked for, and all that it complained of."""

    def __init__(self, browser: Any, path: Path, **options: object) -> None:
        self.page = browser.new_context(**options).new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def x_names(self) -> set[str]:
        """The names of the x axes that are visible."""
        return set(self.page.locator("svg .name:visible").all_text_contents())


@pytest.fixture
def reports(home: Path) -> list[Path]:
    """Of a run with a resume, of three runs, of a fine-tuned model, and of rl."""
    write_log(home, "run", pretraining("run", resume_at=40))
    write_log(home, "other", pretraining("other", worse=0.2))
    write_log(home, "long", pretraining("long", 3000))
    write_log(home, "rl", reinforcement("rl"))
    groups = [["run"], ["run", "other", "long"], [saved_run(home, "sft")], ["rl"]]
    return [write_report(Home(home), names).path for names in groups]


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_ask_for_nothing_and_do_not_complain(
    browser: Any, reports: list[Path], width: int, scheme: str
) -> None:
    for path in reports:
        size = {"width": width, "height": 900}
        opened = OpenedReport(browser, path, viewport=size, color_scheme=scheme)
        page = opened.page
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.hover("svg[data-chart] >> nth=0")
        assert opened.requests == [path.as_uri()]
        assert opened.complaints == []
        assert page.evaluate("window.hacked") is None
        page.context.close()


def test_the_axis_is_switched_without_a_script(browser: Any, reports: list[Path]) -> None:
    opened = OpenedReport(browser, reports[0], java_script_enabled=False)
    assert opened.x_names() == {"steps"}
    for axis, name in (("time", "training time"), ("flops", "FLOPs"), ("tokens", "tokens")):
        opened.page.click(f"label[for=x-{axis}]")
        opened.page.click("label[for=scale-log]")
        assert opened.x_names() == {name}
        lines = opened.page.locator("svg[data-chart=loss] .line:visible")
        assert lines.count() == 2


def test_values_are_shown_on_hover(browser: Any, reports: list[Path]) -> None:
    opened = OpenedReport(browser, reports[1], viewport={"width": 1400, "height": 900})
    page = opened.page
    page.click("label[for=x-tokens]")
    page.hover("svg[data-chart=bits]")
    shown = page.inner_text(".values")
    first, *others = shown.splitlines()
    assert first.endswith(" tokens") and all(name in shown for name in ("run", "other", "long"))
    ended = [line for line in others if line.startswith(("run", "other"))]
    assert [line.endswith(", 204,800 tokens") for line in ended] == [True, True]
    assert not next(line for line in others if line.startswith("long")).endswith("tokens")
    page.mouse.move(0, 0)
    assert page.locator(".values").count() == 0


def test_small_quantities_are_shown_on_hover_as_on_the_axes(browser: Any, home: Path) -> None:
    small = [
        replace(event, seconds=0.2, memory=replace(event.memory, peak=3 * 10**6))
        if isinstance(event, Stepped)
        else event
        for event in pretraining("small", 10)
    ]
    write_log(home, "small", small)
    page = OpenedReport(browser, write_report(Home(home), ["small"]).path).page
    page.click("label[for=x-time]")
    page.hover("svg[data-chart=memory]")
    assert page.inner_text(".values").splitlines() == ["0.8s", "3.0 MB"]


def test_all_of_it_is_printed(browser: Any, reports: list[Path], tmp_path: Path) -> None:
    opened = OpenedReport(browser, reports[0])
    pdf = tmp_path / "report.pdf"
    opened.page.pdf(path=str(pdf), format="A4")
    assert pdf.stat().st_size > 20_000
    assert opened.page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")


def test_the_script_writes_times_and_sizes_as_the_program_does(browser: Any) -> None:
    script = (LOOK / "report.js").read_text("utf-8")
    seconds = [0, 0.04, 0.42, 0.97, 59, 59.6, 65, 3599.6, 7200, 55_200, 273_600]
    sizes = [0, 999, 1000, 95_100_000, 999_960_000, 2**34, 2.5e12]
    page = browser.new_page()
    for name, ours, values in (("duration", duration, seconds), ("bytes", round_size, sizes)):
        found = re.search(rf"^  function {name}\(.*?^  }}", script, re.MULTILINE | re.DOTALL)
        assert found is not None
        theirs = page.evaluate(f"(values) => {{ {found[0]} return values.map({name}); }}", values)
        assert theirs == [ours(value) for value in values]
