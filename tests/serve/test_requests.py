"""What is asked for: parameters that are wrong or not supported, prompts, and what is generated."""

import math
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from support.servers import ANSWER, BYTES, FakeScheduler, ask, model, service, tokens

from mlxchat.config.inference import Sampling
from mlxchat.json_text import as_type
from mlxchat.serve import prompts, schema
from mlxchat.serve.requests import Request

HI = [{"role": "user", "content": "hi"}]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


def chat(**body: object) -> object:
    return ask(service(queue=8).app, "POST", CHAT, {"messages": HI, **body})


def asked(path: str = CHAT, served: object = None, **body: object) -> list[Request]:
    """Send a request that is accepted; returns the one that the scheduler gets."""
    scheduler = FakeScheduler()
    reply = ask(service(scheduler, served).app, "POST", path, body)
    assert reply.status == 200, reply.body
    return [ticket.request for ticket in scheduler.tickets]


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages", None),
        ({"messages": [*HI, {"role": "assistant", "content": "moo"}]}, "messages", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_value"),
        ({"messages": HI * 1001}, "messages", "invalid_value"),
        (
            {"messages": [*HI, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[1].tool_calls",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": "moo" * 100}]}, "messages", None),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"topk": 3}, "topk", "unknown_parameter"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "warm"}, "temperature", "invalid_value"),
        ({"temperature": math.nan}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 33}, "n", "invalid_value"),
        ({"n": 20}, "n", None),
        ({"n": True}, "n", "invalid_value"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"stop": 7}, "stop", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", None),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"265": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"²": 1}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"model": 7}, "model", "invalid_value"),
    ],
)
def test_a_wrong_parameter_is_named(body: dict[str, object], param: str, code: str | None) -> None:
    reply = chat(**body)
    assert reply.status == 400
    error = reply.error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    if code:
        assert error["code"] == code
    assert error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [265]}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": "a", "n": 9}, "n"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "messages": HI}, "messages"),
    ],
)
def test_a_wrong_parameter_of_a_completion_is_named(body: dict[str, object], param: str) -> None:
    reply = ask(service(queue=8).app, "POST", COMPLETE, body)
    assert reply.status == 400
    assert reply.error["param"].partition("[")[0] == param


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[]", b"7", b'{"a": NaN', b"[" * 10_000, b'{"prompt": "\\ud800"}'],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    reply = ask(service().app, "POST", COMPLETE, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        {"\ud800": 1},
        {"prompt": "a", "max_tok\udfffens": 1},
        {"\udc00": None},
        {"user": {"\ud800": 1}},
    ],
)
def test_half_of_a_surrogate_pair_is_no_failure(body: dict[str, object]) -> None:
    for path in (CHAT, COMPLETE):
        reply = ask(service().app, "POST", path, body)
        assert reply.status == 400
        assert reply.error["message"]


WRONG = 100_000
LARGE = [
    (COMPLETE, {"prompt": [-1] * WRONG}, "prompt[0]"),
    (COMPLETE, {"prompt": [[1], [-1] * WRONG]}, "prompt[1][0]"),
    (COMPLETE, {"prompt": ["a"] * WRONG}, "prompt"),
    (COMPLETE, {"prompt": [[]] * WRONG}, "prompt[0]"),
    (COMPLETE, {"prompt": "a", "stop": [1] * WRONG}, "stop"),
    (COMPLETE, {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(50_000)), "x")},
     "logit_bias"),
    (CHAT, {"messages": [1] * WRONG}, "messages[0]"),
    (CHAT, {"messages": [{"role": "user", "content": [1] * WRONG}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{}] * 300}] * 400},
     "messages[0].content[0].type"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), LARGE)
def test_of_a_large_body_only_the_first_faults_are_described(
    path: str, body: dict[str, object], param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[int] = []

    def counting(fields: object, kind: TypeAdapter[object]) -> object:
        try:
            return as_type(fields, kind)
        except ValidationError as error:
            described.append(error.error_count())
            raise

    monkeypatch.setattr(schema, "as_type", counting)
    reply = ask(service().app, "POST", path, body)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert described[0] <= 10


def test_a_prompt_leaves_room_for_an_answer() -> None:
    for length, status in ((198, 200), (199, 400), (100_000, 400)):
        reply = ask(service().app, "POST", COMPLETE, {"prompt": "a" * length})
        assert reply.status == status
    assert reply.error["code"] == "context_length_exceeded"
    assert reply.error["message"].startswith("This model's maximum context length is 200 tokens.")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/embeddings", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/cow", 405),
        ("OPTIONS", "/v1/completions", 405),
    ],
)
def test_what_there_is_not(method: str, path: str, status: int) -> None:
    reply = ask(service().app, method, path, {})
    assert reply.status == status
    assert reply.error["message"]
    assert ("allow" in reply.headers) == (status == 405)


def test_a_base_model_completes_and_says_that_it_does_not_answer() -> None:
    base = model(conversational=False)
    reply = ask(service(served=base).app, "POST", CHAT, {"messages": HI})
    assert reply.status == 400
    assert "base model" in reply.error["message"]
    assert "/v1/completions" in reply.error["message"]
    assert asked(COMPLETE, base, prompt="The")
    assert ask(service(served=base).app, "GET", "/v1/models/cow").json["chat"] is False


def test_a_request_chooses_a_model_by_name() -> None:
    scheduler, pirate = FakeScheduler(), model(name="pirate", adapter="pirate", context=100)
    app = service(scheduler, model(conversational=False), others=[pirate]).app
    listed = ask(app, "GET", "/v1/models").json["data"]
    assert [(each["id"], each["chat"], each["context_length"]) for each in listed] == [
        ("cow", False, 200),
        ("pirate", True, 100),
    ]
    assert ask(app, "GET", "/v1/models/pirate").json == listed[1]
    reply = ask(app, "POST", CHAT, {"messages": HI, "model": "pirate"})
    assert (reply.status, reply.json["model"]) == (200, "pirate")
    assert ask(app, "POST", CHAT, {"messages": HI}).status == 400  # the first is a base model
    assert ask(app, "POST", COMPLETE, {"prompt": "The"}).json["model"] == "cow"
    assert [ticket.request.adapter for ticket in scheduler.tickets] == ["pirate", None]
    reply = ask(app, "POST", CHAT, {"messages": HI, "model": "hen"})
    assert reply.status == 404 and "'cow', 'pirate'" in reply.error["message"]


# ---- what is generated ---------------------------------------------------------------------------


def test_parameters_reach_the_model() -> None:
    [request] = asked(
        messages=HI,
        max_completion_tokens=7,
        temperature=1,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"97": -100},
        logprobs=True,
        top_logprobs=4,
        seed=-1,
    )
    assert request.max_tokens == 7
    assert request.sampling == Sampling(
        temperature=1, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2
    )
    assert (request.presence_penalty, request.frequency_penalty) == (0.5, -0.5)
    assert request.logit_bias == {97: -100}
    assert (request.logprobs, request.seed) == (4, 2**64 - 1)
    assert request.stop == {BYTES.bos, BYTES.special("<|assistant_end|>")}
    assert request.tools is not None


def test_what_is_left_out_or_null_is_the_servers() -> None:
    served = model(sampling=Sampling(temperature=0.1, top_k=9))
    [request] = asked(
        served=served, messages=HI, temperature=None, tools=None, user="me", store=False
    )
    assert request.sampling == served.sampling
    assert request.max_tokens == 200 - len(request.ids)
    assert request.logprobs is None
    assert [each.sampling.top_k for each in asked(messages=HI, top_k=-1)] == [None]
    assert [each.max_tokens for each in asked(COMPLETE, prompt="The")] == [16]


@pytest.mark.parametrize("most", [9, 30, 512])
def test_the_servers_length_is_that_of_completions_if_it_was_given(most: int) -> None:
    scheduler = FakeScheduler()
    app = service(scheduler, max_tokens=most).app
    for path, body in ((COMPLETE, {"prompt": "The"}), (CHAT, {"messages": HI})):
        ask(app, "POST", path, body)
        ask(app, "POST", path, {**body, "max_tokens": 7})
    expected = [min(most, 196), 7, min(most, 194), 7]
    assert [ticket.request.max_tokens for ticket in scheduler.tickets] == expected


def test_answers_to_one_request_have_seeds_of_their_own() -> None:
    assert [request.seed for request in asked(messages=HI, n=3, seed=5)] == [5, 6, 7]
    assert [request.seed for request in asked(messages=HI, n=2, seed=-1)] == [2**64 - 1, 0]
    assert asked(messages=HI)[0].seed != asked(messages=HI)[0].seed
    scheduler = FakeScheduler()
    ask(service(scheduler, seed=42).app, "POST", CHAT, {"messages": HI})
    assert scheduler.tickets[0].request.seed == 42


def test_a_conversation_is_read_as_in_training() -> None:
    [request] = asked(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "user", "content": "there"},
            {"role": "assistant", "content": "Moo <|bos|>"},
            {"role": "user", "content": "Why?", "name": "Ada"},
        ]
    )
    start, end = "<|user_start|>", "<|user_end|>"
    first = [start, "Be brief.\n\nHi\n\nthere", end]
    answer = ["<|assistant_start|>", "Moo <", "|bos|>", "<|assistant_end|>"]
    last = [start, "Why?", end, "<|assistant_start|>"]
    assert list(request.ids) == tokens("<|bos|>", *first, *answer, *last)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_conversations_without_a_system_message_have_the_servers(role: str) -> None:
    served, user = model(system="Be brief."), {"role": "user", "content": "Hi"}
    earlier = {"role": "assistant", "content": "Moo"}
    for own, said in (([], "Be brief."), ([{"role": role, "content": "Sing."}], "Sing.")):
        [request] = asked(served=served, messages=[*own, user, earlier, user])
        begun = tokens("<|bos|>", "<|user_start|>", f"{said}\n\nHi", "<|user_end|>")
        assert list(request.ids[: len(begun)]) == begun
        assert BYTES.decode(list(request.ids)).count("brief") == len(own) ^ 1
    [request] = asked(COMPLETE, served, prompt="Hi")
    assert list(request.ids) == tokens("<|bos|>", "Hi")


def test_a_servers_system_message_moves_no_place() -> None:
    wrong = {"messages": [*HI, {"role": "tool", "content": "4"}]}
    reply = ask(service(served=model(system="Be brief.")).app, "POST", CHAT, wrong)
    assert reply.error["param"] == "messages[1].role"


def test_no_calculation_is_done_of_what_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(prompts, "calculate", lambda expression: done.append(expression))
    long = {"role": "assistant", "content": "[1 = 1]" * 1000}
    reply = ask(service().app, "POST", CHAT, {"messages": [*HI, long, *HI]})
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert done == []


def test_calculations_may_fill_the_context() -> None:
    fitting = "[1 = 1]" * 30
    [request] = asked(messages=[*HI, {"role": "assistant", "content": fitting}, *HI])
    assert len(request.ids) == 30 * 6 + 12


CALCULATION = ["<|python_start|>", "48/2", "<|python_end|>"]
CALCULATION += ["<|output_start|>", "24.0", "<|output_end|>"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("So [48/2 = 24.0]!", ["So ", *CALCULATION, "!"]),
        ("[48/2 = 24.0]", CALCULATION),
        ("[a = b] [[48/2 = 24.0]", ["[a = b] [", *CALCULATION]),
        ("[48/2 = 25.0]", ["[48/2 = 25.0]"]),
        ("[48/2]", ["[48/2]"]),
    ],
)
def test_an_earlier_calculation_is_read_as_it_was_written(answer: str, said: list[str]) -> None:
    [request] = asked(messages=[*HI, {"role": "assistant", "content": answer}, *HI])
    user = ["<|user_start|>", "hi", "<|user_end|>"]
    earlier = ["<|assistant_start|>", *said, "<|assistant_end|>"]
    conversation = ["<|bos|>", *user, *earlier, *user, "<|assistant_start|>"]
    assert list(request.ids) == tokens(*conversation)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("cow", [[265 - 9, 99, 111, 119]]),
        (["a", "b"], [[256, 97], [256, 98]]),
        ([99, 111], [[99, 111]]),
        ([[99], [111, 119]], [[99], [111, 119]]),
    ],
)
def test_a_prompt_is_text_or_ids(prompt: object, ids: list[list[int]]) -> None:
    assert [list(request.ids) for request in asked(COMPLETE, prompt=prompt)] == ids


# ---- answers -------------------------------------------------------------------------------------


def test_a_calculation_has_a_field() -> None:
    said = tokens("<|python_start|>", "48/2", "<|python_end|>", "<|output_start|>", "24.0")
    scheduler = FakeScheduler(lambda request: [*said, *tokens("<|output_end|>", "!")])
    app = service(scheduler).app
    message = ask(app, "POST", CHAT, {"messages": HI}).json["choices"][0]["message"]
    assert message["content"] == "[48/2 = 24.0]!"
    assert message["calculations"] == [{"expression": "48/2", "result": "24.0"}]
    chunks = ask(app, "POST", CHAT, {"messages": HI, "stream": True}).events
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "[48/2 = 24.0]!"
    [told] = [delta["calculations"] for delta in deltas if "calculations" in delta]
    assert told == message["calculations"]


def test_a_stream_without_usage_has_no_such_field() -> None:
    chunks = ask(service().app, "POST", CHAT, {"messages": HI, "stream": True}).events
    assert not any("usage" in chunk for chunk in chunks)
    assert "calculations" not in ask(service().app, "POST", CHAT, {"messages": HI}).body.decode()


def test_the_earlier_path_of_nanochat() -> None:
    reply = ask(service().app, "POST", "/chat/completions", {"messages": HI})
    assert reply.json["choices"][0]["message"]["content"] == ANSWER


def test_a_full_queue_is_429_and_a_closing_server_503() -> None:
    scheduler = FakeScheduler(slots=1, queue=1)
    scheduler.go.clear()
    for _ in range(2):
        scheduler.submit(asked(messages=HI)[0], lambda piece: None)
    reply = ask(service(scheduler).app, "POST", CHAT, {"messages": HI})
    assert (reply.status, reply.error["type"]) == (429, "rate_limit_error")
    assert int(reply.headers["retry-after"]) > 0
    closing = service()
    closing.closing = True
    assert ask(closing.app, "POST", CHAT, {"messages": HI}).status == 503
    assert ask(closing.app, "GET", "/health").status == 503


def test_what_was_queued_of_a_refused_request_is_given_up() -> None:
    scheduler = FakeScheduler(slots=1, queue=2)
    scheduler.go.clear()
    scheduler.submit(asked(messages=HI)[0], lambda piece: None)
    reply = ask(service(scheduler).app, "POST", CHAT, {"messages": HI, "n": 3})
    assert reply.status == 429
    assert [ticket.cancelled for ticket in scheduler.tickets] == [False, True, True]


def test_a_failure_of_the_model_is_500_and_in_a_stream_an_event() -> None:
    lines: list[str] = []
    scheduler = FakeScheduler(failure=RuntimeError("secret"))
    app = service(scheduler, log=lines.append).app
    reply = ask(app, "POST", CHAT, {"messages": HI})
    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert "secret" not in reply.error["message"]
    assert reply.headers["x-should-retry"] == "false"
    stream = ask(app, "POST", CHAT, {"messages": HI, "stream": True}).body.decode()
    assert "event: error\ndata: {" in stream
    assert "[DONE]" not in stream
    assert all("failed: RuntimeError: secret" in line for line in lines)


def test_a_dead_thread_is_unhealthy() -> None:
    scheduler = FakeScheduler()
    app = service(scheduler).app
    assert ask(app, "GET", "/health").status == 200
    scheduler.alive = False
    assert ask(app, "GET", "/health").status == 503


def test_an_answer_ends_when_its_time_is_up() -> None:
    scheduler = FakeScheduler()
    scheduler.go.clear()
    reply = ask(service(scheduler, timeout=0.02).app, "POST", CHAT, {"messages": HI})
    assert (reply.status, reply.error["code"]) == (503, "timeout")
    scheduler = FakeScheduler(lambda request: pausing(scheduler))
    reply = ask(service(scheduler, timeout=0.1).app, "POST", CHAT, {"messages": HI})
    assert reply.json["choices"][0]["message"]["content"] == "Mo"
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert scheduler.tickets[0].cancelled


def pausing(scheduler: FakeScheduler) -> list[int]:
    """A script after whose second token the scheduler waits."""

    class Script(list):
        def __getitem__(self, place: int) -> int:
            if place == 1:
                scheduler.go.clear()
            return super().__getitem__(place)

    return Script(tokens("Moo"))


def test_metrics_count_what_was_done() -> None:
    serving = service()
    ask(serving.app, "POST", CHAT, {"messages": HI})
    ask(serving.app, "GET", "/nowhere/42")
    text = ask(serving.app, "GET", "/metrics").body.decode()
    assert 'mlxchat_requests_total{path="/v1/chat/completions",status="200"} 1\n' in text
    assert 'mlxchat_requests_total{path="other",status="404"} 1\n' in text
    assert f"mlxchat_generated_tokens_total {len(ANSWER)}\n" in text
    assert "mlxchat_first_token_seconds_count 1\n" in text
    for line in text.splitlines():
        assert line.startswith("# ") or len(line.split()) == 2


def test_the_page_loads_nothing_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxchat.serve.app.resources.files", lambda package: tmp_path)
    (tmp_path / "page").mkdir()
    for name in ("index.html", "chat.css", "chat.js"):
        (tmp_path / "page" / name).write_text(name)
    app = service(api_key="correct-horse").app
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/chat.css", "chat.css", "text/css"),
        ("/chat.js", "chat.js", "text/javascript"),
    ):
        reply = ask(app, "GET", path)
        assert (reply.status, reply.body.decode()) == (200, name)
        assert reply.headers["content-type"] == f"{kind}; charset=utf-8"
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert ask(app, "GET", "/index.html").status == 401
