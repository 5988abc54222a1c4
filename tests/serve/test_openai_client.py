"""openai-python against a running server: it checks what it reads with types of its own."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from support.servers import ANSWER, BYTES, FakeScheduler, serving, tokens

from mlxchat.config.inference import Sampling
from mlxchat.serve.requests import Request

HI = [{"role": "user", "content": "hi"}]
KEY = "correct-horse"
REQUEST = Request((1,), 1, Sampling(), 0, frozenset())


def said(request: Request) -> list[int]:
    """The answer; one with another seed than 0 says so."""
    return tokens(ANSWER, f" {request.seed}" if request.seed else "")


@pytest.fixture(scope="module")
def scheduler() -> FakeScheduler:
    return FakeScheduler(said)


@pytest.fixture(scope="module")
def client(scheduler: FakeScheduler) -> Iterator[OpenAI]:
    with (
        serving(scheduler, api_key=KEY, seed=0) as server,
        OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client,
    ):
        yield client


def chat(client: OpenAI, **parameters: object) -> object:
    return client.chat.completions.create(model="cow", messages=HI, **parameters)


def test_a_chat(client: OpenAI) -> None:
    reply = chat(client)
    [choice] = reply.choices
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert reply.model == "cow"
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 17, 23)
    assert usage.prompt_tokens_details.cached_tokens == 5


def test_a_stream_with_usage(client: OpenAI) -> None:
    stream = chat(client, stream=True, stream_options={"include_usage": True})
    first, *chunks, end, usage = stream
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == ANSWER
    assert end.choices[0].finish_reason == "stop"
    assert end.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage.completion_tokens == 17
    assert {(chunk.id, chunk.created) for chunk in (*chunks, end, usage)} == {
        (first.id, first.created)
    }


def test_the_clients_own_reader_of_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(model="cow", messages=HI, n=2) as stream:
        texts = [event.content for event in stream if event.type == "content.done"]
        assert sorted(texts) == [ANSWER, f"{ANSWER} 1"]
        assert stream.get_final_completion().choices[1].message.content == f"{ANSWER} 1"


def test_several_answers_and_their_seeds(client: OpenAI) -> None:
    reply = chat(client, n=3, seed=0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in reply.choices]
    assert texts == [ANSWER, f"{ANSWER} 1", f"{ANSWER} 2"]
    assert chat(client, seed=2).choices[0].message.content == texts[2]
    assert reply.usage.prompt_tokens == 6


def test_a_stream_of_several_answers(client: OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in chat(client, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: ANSWER, 1: f"{ANSWER} 1"}


def test_a_stop_string(client: OpenAI, scheduler: FakeScheduler) -> None:
    reply = chat(client, stop=["nothing", "ow sa"])
    assert reply.choices[0].message.content == "The c"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len("The cow sa")
    assert scheduler.tickets[-1].cancelled
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in chat(client, stop="ow", stream=True)
    ]
    assert "".join(pieces) == "The c"


def test_the_length_of_an_answer(client: OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        choice = chat(client, **{name: 3}).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("The", "length")


def test_log_probabilities(client: OpenAI) -> None:
    [choice] = chat(client, logprobs=True, top_logprobs=2, max_tokens=2).choices
    first, second = choice.logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("T", [84], -0.5)
    assert [(top.token, top.logprob) for top in second.top_logprobs] == [("h", -0.5), ("\0", -2.0)]
    stream = chat(client, logprobs=True, max_tokens=2, stream=True)
    told = [c.choices[0].logprobs.content for c in stream if c.choices[0].logprobs]
    assert [entry.token for entries in told for entry in entries] == ["T", "h"]
    assert not told[0] or told[0][0].top_logprobs == []


def test_completions(client: OpenAI) -> None:
    reply = client.completions.create(model="cow", prompt=["a", "b"], n=2, max_tokens=30)
    assert [choice.text for choice in reply.choices] == [ANSWER, f"{ANSWER} 1"] * 2
    assert reply.usage.prompt_tokens == 4
    by_ids = client.completions.create(model="cow", prompt=BYTES.encode("a"), logprobs=1)
    [choice] = by_ids.choices
    assert (choice.text, choice.finish_reason) == (ANSWER[:16], "length")
    assert choice.logprobs.text_offset == list(range(16))
    assert choice.logprobs.top_logprobs[0] == {"T": -0.5}
    chunks = client.completions.create(
        model="cow", prompt="a", stream=True, stream_options={"include_usage": True}
    )
    *texts, usage = chunks
    assert "".join(chunk.choices[0].text for chunk in texts) == ANSWER[:16]
    assert texts[-1].choices[0].finish_reason == "length"
    assert usage.usage.total_tokens == 18


def test_the_models(client: OpenAI) -> None:
    [card] = client.models.list().data
    assert card.id == client.models.retrieve("cow").id == "cow"
    assert card.context_length == 200


def test_extra_fields(client: OpenAI, scheduler: FakeScheduler) -> None:
    chat(client, extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5})
    sampling = scheduler.tickets[-1].request.sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (3, 0.1, 1.5)


@pytest.mark.parametrize(
    ("parameters", "kind", "param", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model", "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"tools": [{"type": "x"}]}, openai.BadRequestError, "tools", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": "moo" * 70}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
        (
            {"extra_headers": {"authorization": "Bearer wrong"}},
            openai.AuthenticationError,
            None,
            "invalid_api_key",
        ),
        (
            {"extra_headers": {"host": "evil.example"}},
            openai.PermissionDeniedError,
            None,
            "host_not_allowed",
        ),
    ],
)
def test_errors(
    client: OpenAI, parameters: dict[str, object], kind: type, param: str | None, code: str
) -> None:
    given = {"model": "cow", "messages": HI, **parameters}
    for stream in (False, True):
        with pytest.raises(kind) as raised:
            client.chat.completions.create(**given, stream=stream)
        assert (raised.value.param, raised.value.code) == (param, code)


def test_a_full_queue_is_tried_again() -> None:
    scheduler = FakeScheduler(slots=1, queue=1)
    scheduler.go.clear()
    with (
        serving(scheduler) as server,
        OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        taken = [scheduler.submit(REQUEST, lambda piece: None) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as raised:
            chat(client)
        assert raised.value.code == "rate_limit_exceeded"
        assert raised.value.response.headers["retry-after"] == "1"
        for ticket in taken:
            ticket.cancel()
        scheduler.go.set()
        assert chat(client.with_options(max_retries=2)).choices[0].message.content == ANSWER


def test_a_failure_within_a_stream_is_an_exception() -> None:
    scheduler = FakeScheduler(failure=RuntimeError("out of memory"))
    with (
        serving(scheduler) as server,
        OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.APIError, match="The model failed"):
            list(chat(client, stream=True))
        with pytest.raises(openai.InternalServerError):
            chat(client.with_options(max_retries=2))
        assert len(scheduler.tickets) == 2  # the server says that it is of no use to try again
