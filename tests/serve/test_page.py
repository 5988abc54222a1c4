"""The page in a real browser: Debian's Chromium, where there is one, by playwright."""

import re
import shutil
import time
from collections.abc import Iterator
from copy import copy
from typing import Any

import pytest
from support.servers import ANSWER, FakeScheduler, FakeTicket, model, serving, tokens

from mlxchat.serve.requests import Request
from mlxchat.serve.server import Server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
expect = playwright.expect

SUM = "[2*3*4 = 24] 2 ** 3 ** 2 is *not* 64"
MARKUP = "<script>window.hacked = 1</script> <img src=x onerror='window.hacked = 2'> **bold** naïve"
CODE = "Here:\n\n```python\nfor i in range(3):\n    print(i)\n```\n\n1. one\n2. two"


def said(request: Request) -> list[int]:
    asked = bytes(i for i in request.ids if i < 256).decode()
    answers = {
        "sum": SUM,
        "markup": MARKUP,
        "code": CODE,
        "words": "word " * 60,
        "long": "word " * 300,
    }
    for word, answer in answers.items():
        if asked.endswith(word):
            return tokens(answer)
    return tokens(ANSWER)


class Unhurried(FakeScheduler):
    def _step(self, ticket: FakeTicket) -> None:
        time.sleep(0.003)
        super()._step(ticket)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as programs:
        running = programs.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def scheduler() -> FakeScheduler:
    return Unhurried(said)


@pytest.fixture(scope="module")
def server(scheduler: FakeScheduler) -> Iterator[Server]:
    with serving(scheduler, model(context=2000)) as running:
        yield running


@pytest.fixture
def silence(scheduler: FakeScheduler) -> Iterator[FakeScheduler]:
    """No token comes until ``go`` is set."""
    scheduler.go.clear()
    yield scheduler
    scheduler.go.set()


def _is_answer(response: Any) -> bool:
    return response.ok and response.url.endswith("/chat/completions")


class Opened:
    """A page of the server, and all that it asked for and complained of."""

    def __init__(self, browser: Any, server: Server, **options: object) -> None:
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(10_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.address = server.url.removesuffix("/v1")
        self.page.goto(self.address)

    def other_tab(self) -> "Opened":
        """Another tab of the same browser."""
        other = copy(self)
        other.page = self.page.context.new_page()
        other.page.goto(self.address)
        return other

    @property
    def kept(self) -> list[list[str]]:
        """What the messages of each conversation say, as the browser keeps them."""
        kept = self.page.evaluate("""Object.keys(localStorage)
            .filter(name => name.startsWith("mlxchat.conversation."))
            .map(name => JSON.parse(localStorage[name]))
            .sort((one, other) => other.changed - one.changed)
        """)
        return [[message["content"] for message in one["messages"]] for one in kept]

    def ask(self, text: str) -> None:
        self.page.fill("#input", text)
        self.page.keyboard.press("Enter")

    def sent(self, text: str) -> Any:
        """Ask, and return the messages that the server is sent last."""
        with self.page.expect_response(_is_answer) as responded:
            self.ask(text)
        return responded.value.request.post_data_json["messages"]

    def answer(self) -> Any:
        """The last answer, when it is complete."""
        expect(self.page.locator("#send")).to_be_visible()
        return self.page.locator("article.assistant").last

    def require_quiet(self) -> None:
        assert self.complaints == []
        assert all(url.startswith(self.address) for url in self.requests)


@pytest.fixture
def opened(browser: Any, server: Server) -> Opened:
    return Opened(browser, server)


@pytest.fixture
def base(browser: Any) -> Iterator[Opened]:
    with serving(FakeScheduler(said), model(conversational=False)) as running:
        yield Opened(browser, running)


def test_a_conversation_streams_and_survives_a_reload(opened: Opened) -> None:
    page = opened.page
    expect(page.locator("#model")).to_have_text("cow")
    opened.ask("Hello")
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    expect(opened.answer().locator("footer span")).to_have_text(re.compile("17 tokens"))
    expect(page.locator("#status")).to_have_text(re.compile(r"context \d+ of 2,000"))
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("#conversations .open")).to_have_text(["Hello"])
    page.click("#new-chat")
    expect(page.locator("article")).to_have_count(0)
    opened.require_quiet()


def test_an_answer_can_be_stopped_and_generated_anew(opened: Opened) -> None:
    opened.ask("something long")
    expect(opened.page.locator("article.assistant .content")).to_contain_text("word")
    opened.page.keyboard.press("Escape")
    expect(opened.answer().locator("footer span")).to_have_text("stopped")
    kept = opened.answer().locator(".content").inner_text()
    assert 0 < len(kept) < 1400
    opened.answer().get_by_role("button", name="Regenerate").click()
    opened.page.click("#stop")
    expect(opened.answer().locator("footer span")).to_have_text("stopped")
    opened.page.get_by_role("button", name="Edit").click()
    expect(opened.page.locator("#input")).to_have_value("something long")
    expect(opened.page.locator("article")).to_have_count(0)
    opened.require_quiet()


def test_what_is_said_stays_text(opened: Opened) -> None:
    opened.ask("<b>some markup")
    answer = opened.answer().locator(".content")
    expect(answer).to_contain_text("<script>window.hacked = 1</script>")
    expect(answer.locator("strong")).to_have_text("bold")
    assert answer.locator("script, img").count() == 0
    expect(opened.page.locator("article.user .content")).to_have_text("<b>some markup")
    assert opened.page.evaluate("window.hacked") is None
    opened.require_quiet()


def test_an_enter_that_ends_an_input_method_sends_nothing(opened: Opened) -> None:
    opened.page.fill("#input", "うし")
    for told in ({"isComposing": True}, {"keyCode": 229}):  # Safari tells of the last one by 229
        event = {"key": "Enter", "bubbles": True, "cancelable": True, **told}
        opened.page.dispatch_event("#input", "keydown", event)
    expect(opened.page.locator("#input")).to_have_value("うし")
    expect(opened.page.locator("article")).to_have_count(0)
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("article.user .content")).to_have_text("うし")


def test_on_a_phone_in_the_dark(browser: Any, server: Server) -> None:
    size = {"width": 360, "height": 740}
    opened = Opened(browser, server, viewport=size, color_scheme="dark", has_touch=True)
    opened.ask("show code")
    expect(opened.answer().locator("pre")).to_contain_text("print(i)")
    expect(opened.answer().locator("ol li")).to_have_text(["one", "two"])
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
    page.click("#toggle-list")
    expect(page.locator("#new-chat")).to_be_visible()
    opened.require_quiet()


def test_settings_are_sent_and_errors_shown(opened: Opened) -> None:
    page = opened.page
    page.click("#open-settings")
    page.fill("[name=system]", "Be brief.")
    page.fill("[name=temperature]", "0.5")
    page.fill("[name=seed]", "7")
    page.get_by_role("button", name="Save").click()
    page.fill("#input", "Hello")
    with page.expect_request("**/chat/completions") as sent:
        page.keyboard.press("Enter")
    body = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"]) == (0.5, 7)
    opened.answer()
    opened.ask("x" * 3000)
    expect(opened.answer().locator(".error")).to_contain_text("context")


def test_a_base_model_continues_text(browser: Any) -> None:
    with serving(FakeScheduler(said), model(conversational=False)) as running:
        page = Opened(browser, running).page
        page.fill("#text", "Once")
        page.click("#continue")
        expect(page.locator("#text")).to_have_value("OnceThe cow says moo.")
        page.click("#undo-text")
        expect(page.locator("#text")).to_have_value("Once")


def test_it_says_when_the_server_is_gone(browser: Any) -> None:
    with serving(FakeScheduler(said)) as running:
        opened = Opened(browser, running)
        expect(opened.page.locator("#model")).to_have_text("cow")
    opened.ask("Are you there?")
    expect(opened.page.locator("#gone")).to_contain_text("does not respond")


def test_another_model_is_found_after_a_failure(opened: Opened) -> None:
    page = opened.page
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "calf"}]}))
    page.reload()
    expect(page.locator("#model")).to_have_text("calf")
    page.unroute("**/v1/models")
    opened.ask("Hello")
    expect(opened.answer().locator(".error")).to_contain_text("'calf' does not exist")
    expect(page.locator("#model")).to_have_text("cow")
    opened.answer().get_by_role("button", name="Regenerate").click()
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)


def test_one_of_several_models_is_chosen_in_the_settings(browser: Any) -> None:
    scheduler = FakeScheduler(said)
    with serving(scheduler, others=[model(name="pirate", adapter="pirate")]) as running:
        opened = Opened(browser, running)
        page, choice = opened.page, opened.page.get_by_label("Model")
        page.click("#open-settings")
        expect(choice).to_have_value("cow")
        choice.select_option("pirate")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#model")).to_have_text("pirate")
        opened.ask("Hello")
        expect(opened.answer().locator(".content")).to_have_text(ANSWER)
        assert [ticket.request.adapter for ticket in scheduler.tickets] == ["pirate"]
        page.reload()
        expect(page.locator("#model")).to_have_text("pirate")


def test_the_server_is_looked_for_by_one_loop(opened: Opened) -> None:
    page = opened.page
    looks: list[str] = []

    def refuse(route: Any) -> None:
        looks.append(route.request.url)
        route.fulfill(status=503, json={"error": {"message": "The server is shutting down."}})

    page.route("**/v1/models", refuse)
    page.clock.install()
    page.reload()
    gone = page.locator("#gone")
    expect(gone).to_have_text("The server is shutting down.")
    page.evaluate("""window.told = 0;
        const gone = document.querySelector("#gone");
        new MutationObserver(() => told++).observe(gone, {childList: true});
    """)
    for _save in range(3):
        page.click("#open-settings")
        with page.expect_response("**/v1/models"):
            page.get_by_role("button", name="Save").click()
    before = len(looks)
    for seconds in (1, 2):
        with page.expect_response("**/v1/models"):
            page.clock.run_for(3100)
        assert len(looks) == before + seconds
    assert page.evaluate("told") == 0
    page.unroute("**/v1/models")
    page.clock.run_for(3100)
    expect(gone).to_be_hidden()
    expect(page.locator("#model")).to_have_text("cow")


def test_a_turn_that_failed_is_not_sent_again(opened: Opened) -> None:
    opened.ask("x" * 3000)
    expect(opened.answer().locator(".error")).to_contain_text("context")
    assert opened.sent("Hello") == [{"role": "user", "content": "Hello"}]
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    contents = [message["content"] for message in opened.sent("And?")]
    assert contents == ["Hello", ANSWER, "And?"]


def test_the_oldest_turns_are_dropped_when_the_context_is_full(opened: Opened) -> None:
    opened.ask("y" * 1500)  # the server counts its tokens, which leave no room for the next answer
    opened.answer()
    assert len(opened.sent("Hello")) == 1
    dropped = "the oldest turns (1) no longer fit"
    expect(opened.answer().locator("footer span")).to_contain_text(dropped)
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    opened.page.click("#new-chat")
    opened.ask("tell me something that is really rather long")
    expect(opened.page.locator("article.assistant .content")).to_contain_text("word")
    opened.page.keyboard.press("Escape")  # so that nobody knows how many tokens it has
    opened.answer()
    assert len(opened.sent("y" * 1970)) == 1
    expect(opened.answer().locator("footer span")).to_contain_text(dropped)
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)


def test_an_answer_regenerated_while_it_is_written_streams_anew(opened: Opened) -> None:
    opened.ask("something long")
    content = opened.page.locator("article.assistant .content")
    expect(content).to_contain_text("word word word")
    opened.page.get_by_role("button", name="Regenerate").click()
    expect(content).to_contain_text("word")
    assert opened.page.locator("#stop").is_visible()
    kept = content.inner_text()
    expect(content).not_to_have_text(kept)
    assert opened.page.locator("#stop").is_visible()
    opened.page.click("#stop")
    expect(opened.answer().locator("footer span")).to_have_text("stopped")
    expect(opened.page.locator("article")).to_have_count(2)
    opened.require_quiet()


def test_the_end_of_an_answer_leaves_the_reader_alone(
    browser: Any, server: Server, scheduler: FakeScheduler
) -> None:
    opened = Opened(browser, server, viewport={"width": 360, "height": 300})
    page = opened.page
    opened.ask("some words")
    opened.answer()
    past_end = "m => m.scrollHeight - m.scrollTop - m.clientHeight"
    assert page.locator("#messages").evaluate(past_end) < 2
    scheduler.go.clear()
    try:
        opened.ask("some words")
        expect(page.locator("article")).to_have_count(4)
        edit = page.get_by_role("button", name="Edit").first
        edit.focus()
        page.evaluate("""() => {
            getSelection().selectAllChildren(document.querySelector("article .content"));
            document.querySelector("#messages").scrollTop = 0;
        }""")
    finally:
        scheduler.go.set()
    expect(opened.answer().locator("footer span")).to_contain_text("300 tokens")
    assert page.locator("#messages").evaluate("m => m.scrollTop") == 0
    assert page.evaluate("String(getSelection())") == "some words"
    expect(edit).to_be_focused()


def test_the_focus_is_not_lost(opened: Opened, silence: FakeScheduler) -> None:
    page = opened.page
    page.fill("#input", "some words")
    page.click("#send")
    expect(page.locator("#stop")).to_be_focused()
    silence.go.set()
    expect(page.locator("#send")).to_be_focused()
    opened.answer().get_by_role("button", name="Regenerate").click()
    again = opened.answer().get_by_role("button", name="Regenerate")
    expect(again).to_be_focused()
    silence.go.clear()
    opened.ask("Hello")
    open_button = page.locator("#conversations .open")
    open_button.focus()
    silence.go.set()
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    expect(open_button).to_be_focused()


def test_two_tabs_keep_what_both_said(opened: Opened) -> None:
    opened.ask("one")
    opened.answer()
    other = opened.other_tab()
    other.page.click("#new-chat")
    other.ask("two")
    other.answer()
    opened.ask("three")
    opened.answer()
    assert opened.kept == [["one", ANSWER, "three", ANSWER], ["two", ANSWER]]
    titles = ["one", "two"]
    expect(opened.page.locator("#conversations .open")).to_have_text(titles)
    expect(other.page.locator("#conversations .open")).to_have_text(titles)
    opened.page.on("dialog", lambda dialog: dialog.accept())
    opened.page.get_by_role("button", name="Delete two").click()
    expect(other.page.locator("#conversations .open")).to_have_text(["one"])


def test_conversations_of_an_earlier_page_are_found(opened: Opened) -> None:
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": ANSWER}]
    before = [{"id": str(i), "title": title, "messages": said} for i, title in enumerate("ab")]
    opened.page.evaluate("l => localStorage['mlxchat.conversations'] = JSON.stringify(l)", before)
    opened.page.reload()
    expect(opened.page.locator("#conversations .open")).to_have_text(["a", "b"])
    opened.ask("two")
    opened.answer()
    assert opened.kept == [["one", ANSWER, "two", ANSWER], ["one", ANSWER]]
    opened.page.reload()
    expect(opened.page.locator("#conversations .open")).to_have_text(["a", "b"])


def test_two_tabs_continue_one_conversation(opened: Opened, scheduler: FakeScheduler) -> None:
    opened.ask("one")
    opened.answer()
    other = opened.other_tab()
    expect(other.page.locator("article")).to_have_count(2)
    opened.ask("two")
    opened.answer()
    expect(other.page.locator("article.user .content")).to_have_text(["one", "two"])
    scheduler.go.clear()
    try:
        opened.ask("mine")
        expect(other.page.locator("article")).to_have_count(6)
        other.ask("yours")
        expect(other.page.locator("article")).to_have_count(8)
    finally:
        scheduler.go.set()
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    expect(other.answer().locator(".content")).to_have_text(ANSWER)
    before = ["one", ANSWER, "two", ANSWER, "mine"]
    assert sorted(opened.kept) == [[*before, "", "yours", ANSWER], [*before, ANSWER]]


def test_a_question_outlives_a_reload_during_its_answer(
    opened: Opened, silence: FakeScheduler
) -> None:
    page = opened.page
    broken_off = re.compile(
        "unfinished|was interrupted|was lost"
    )  # as the page or its connection ends first
    opened.ask("something long")
    expect(page.locator("article")).to_have_count(2)
    page.reload()
    expect(page.locator("article.user .content")).to_have_text("something long")
    expect(opened.answer()).to_contain_text(broken_off)
    silence.go.set()
    opened.answer().get_by_role("button", name="Regenerate").click()
    expect(page.locator("article.assistant .content")).to_contain_text("word")
    page.reload()
    expect(opened.answer().locator(".content")).to_contain_text("word")
    expect(opened.answer()).to_contain_text(broken_off)


def test_an_edit_replaces_nothing_before_it_is_sent(opened: Opened) -> None:
    page = opened.page
    for question in ("one", "two"):
        opened.ask(question)
        opened.answer()
    page.fill("#input", "a draft")
    page.get_by_role("button", name="Edit").first.click()
    expect(page.locator("#input")).to_have_value("one")
    expect(page.locator("article")).to_have_count(0)
    page.click("#cancel-edit")
    expect(page.locator("#input")).to_have_value("a draft")
    expect(page.locator("article")).to_have_count(4)
    page.get_by_role("button", name="Edit").last.click()
    page.reload()
    expect(page.locator("article")).to_have_count(4)
    page.get_by_role("button", name="Edit").last.click()
    assert [message["content"] for message in opened.sent("three")] == ["one", ANSWER, "three"]
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    assert opened.kept == [["one", ANSWER, "three", ANSWER]]


def test_an_answer_stays_until_another_one_comes(opened: Opened, scheduler: FakeScheduler) -> None:
    opened.ask("one")
    opened.answer()
    scheduler.go.clear()
    try:
        for _again in range(2):
            opened.page.get_by_role("button", name="Regenerate").click()
            expect(opened.page.locator("article.assistant .content")).to_have_text("")
        opened.page.keyboard.press("Escape")
        expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    finally:
        scheduler.go.set()
    assert opened.kept == [["one", ANSWER]]


def test_a_base_model_has_the_page_to_itself(base: Opened) -> None:
    expect(base.page.locator("#base")).to_be_visible()
    assert base.page.locator("#base").bounding_box()["x"] == 0
    assert base.page.locator("#skip").get_attribute("href") == "#text"


def test_a_base_model_says_how_a_continuation_ended(base: Opened) -> None:
    page, outcome = base.page, base.page.locator("#outcome")
    page.fill("#text", "x" * 300)
    page.click("#continue")
    expect(outcome).to_contain_text("maximum context length")
    expect(outcome).to_have_class("error")
    page.fill("#text", "something long")
    page.click("#continue")
    expect(outcome).to_contain_text("cut at the longest length")
    expect(outcome).not_to_have_class("error")
    expect(page.locator("#gone")).to_be_hidden()


def test_a_stopped_continuation_and_its_text_outlive_a_reload(browser: Any) -> None:
    with serving(Unhurried(said), model(conversational=False, context=2000)) as running:
        page = Opened(browser, running).page
        page.fill("#text", "something long")
        page.click("#continue")
        expect(page.locator("#text")).to_have_value(re.compile("longword word"))
        page.click("#stop-text")
        expect(page.locator("#outcome")).to_have_text("stopped")
        text = page.locator("#text").input_value()
        page.reload()
        expect(page.locator("#text")).to_have_value(text)
        page.click("#undo-text")
        expect(page.locator("#text")).to_have_value("something long")
        page.fill("#text", "once more")
        expect(page.locator("#undo-text")).to_be_disabled()
        page.reload()
        expect(page.locator("#text")).to_have_value("once more")


def test_a_product_is_no_emphasis(opened: Opened) -> None:
    opened.ask("some sum")
    content = opened.answer().locator(".content")
    expect(content).to_have_text(SUM.replace("*not*", "not"))
    expect(content.locator("em, strong")).to_have_text(["not"])


def test_it_works_where_the_browser_keeps_nothing(opened: Opened) -> None:
    opened.page.add_init_script("""
        const forbidden = {get() { throw new DOMException("denied", "SecurityError"); }};
        Object.defineProperties(window, {localStorage: forbidden, sessionStorage: forbidden});
    """)
    opened.page.reload()
    opened.ask("one")
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    opened.page.click("#new-chat")
    opened.ask("two")
    expect(opened.answer().locator(".content")).to_have_text(ANSWER)
    expect(opened.page.locator("#conversations .open")).to_have_text(["two", "one"])


def test_a_screen_reader_hears_what_happens(opened: Opened) -> None:
    page = opened.page
    opened.ask("Hello")
    expect(page.locator("#said")).to_have_text(ANSWER)
    opened.page.context.grant_permissions(["clipboard-write"])
    page.get_by_role("button", name="Copy message").last.click()
    expect(page.locator("#said")).to_have_text("Copied")
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#said")).to_contain_text("replaces this message")
    expect(page.get_by_role("region", name="Messages")).to_be_visible()
