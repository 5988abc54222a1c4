"""The thread that owns the model: what is answered, what fails, what is freed."""

import random
import threading
from dataclasses import replace
from typing import Any

import pytest
from support.memory import memory_held
from support.models import network
from support.scheduling import WAIT, Answer, ask, scheduling

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import generate
from mlxchat.engine.sampling import make_sampler
from mlxchat.errors import DeviceError
from mlxchat.model import rope
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.serve import scheduler as module
from mlxchat.serve.requests import Busy, Closed, Finished, Request, Token
from mlxchat.serve.scheduler import MOST_FAILURES, Scheduler, piece_size

GREEDY = Sampling(temperature=0)
NEVER: frozenset[int] = frozenset()
LONG = 400  # tokens that take a while


@pytest.fixture(scope="module", params=["classic", "modern"])
def model(request: pytest.FixtureRequest) -> GPT:
    return network(512, request.param).model


@pytest.fixture(scope="module")
def classic() -> GPT:
    return network(512).model


def drawn(length: int, seed: int = 0) -> tuple[int, ...]:
    key = mx.random.key(1000 * seed + length)
    return tuple(mx.random.randint(0, 256, (length,), key=key).tolist())


def wanted(length: int = 10, count: int = 8, **options: Any) -> Request:
    settings = {"sampling": GREEDY, "seed": 0, "stop": NEVER, **options}
    return Request(drawn(length), count, **settings)


def alone(model: GPT, request: Request) -> list[int]:
    tokens = generate(
        model, request.ids, KVCache(model.config), make_sampler(request.sampling),
        key=mx.random.key(request.seed), stop=request.stop, max_tokens=request.max_tokens,
        repetition_penalty=request.sampling.repetition_penalty, tools=request.tools,
    )  # fmt: skip
    return list(tokens)


REQUESTS = [
    wanted(3, 30),
    wanted(40, 12, sampling=Sampling(temperature=1.5), seed=3),
    wanted(150, 20, sampling=Sampling(temperature=2.0, top_k=None, repetition_penalty=1.3), seed=9),
    wanted(1, 25, sampling=Sampling(temperature=1.2, top_p=0.8)),
    wanted(70, 9, tools=lambda: {n: n + 1 for n in range(0, 250, 2)}.get),
]


def test_each_adapter_answers_as_it_does_alone() -> None:
    """At the same time, and from the same prompt, of which each keeps what it has read itself."""
    models = {name: network(128, seed=n).model for n, name in enumerate(("", "cow", "hen"))}
    request = wanted(30, 6)
    expected = [alone(model, request) for model in models.values()]
    with scheduling(models.pop(""), adapted=models) as scheduler:
        for _ in range(2):
            asked = [replace(request, adapter=name) for name in (None, *models)]
            answers = [ask(scheduler, each) for each in asked]
            assert [answer.finished() for answer in answers] == 3 * [Finished("length")]
            assert [answer.ids for answer in answers] == expected
        assert scheduler.stats().cached_tokens == 3 * 29
        with pytest.raises(ValueError, match="no adapter 'pig'"):
            ask(scheduler, replace(request, adapter="pig"))


def test_tokens_are_those_of_each_request_alone(model: GPT, monkeypatch: Any) -> None:
    """Together, read in pieces, and again from what was kept."""
    monkeypatch.setattr(module, "piece_size", lambda _: 32)
    expected = [alone(model, request) for request in REQUESTS]
    with scheduling(model, slots=3) as scheduler:
        for _ in range(2):
            answers = [ask(scheduler, request) for request in REQUESTS]
            for answer, tokens in zip(answers, expected, strict=True):
                assert answer.finished().reason == "length"
                assert answer.ids == tokens
        assert [answer.ticket.cached_tokens for answer in answers] == [0, 39, 149, 0, 69]
        assert scheduler.stats().generated_tokens == 2 * sum(map(len, expected))


def test_stop_tokens_end_an_answer_and_are_not_delivered(classic: GPT) -> None:
    tokens = alone(classic, wanted(count=30))
    request = wanted(count=30, stop=frozenset({tokens[5]}))
    with scheduling(classic) as scheduler:
        answer = ask(scheduler, request)
        assert answer.finished().reason == "stop"
        assert answer.ids == tokens[: tokens.index(tokens[5])]


def test_the_next_turn_reads_only_what_is_new(model: GPT) -> None:
    with scheduling(model) as scheduler:
        first = wanted(200, 20)
        answer = ask(scheduler, first)
        answer.finished()
        turn = Request((*first.ids, *answer.ids, 7, 8, 9), 20, GREEDY, 0, NEVER)
        following = ask(scheduler, turn)
        following.finished()
        assert following.ticket.cached_tokens == 200 + 20 - 1
        edited = Request((*first.ids[:150], 1, 2), 20, GREEDY, 0, NEVER)
        other = ask(scheduler, edited)
        other.finished()
        assert other.ticket.cached_tokens == 150
    assert following.ids == alone(model, turn)
    assert other.ids == alone(model, edited)


def test_equal_prompts_at_the_same_time_are_read_once(classic: GPT) -> None:
    with scheduling(classic) as scheduler:
        asked = [wanted(100, sampling=Sampling(temperature=2), seed=n) for n in range(4)]
        answers = [ask(scheduler, request) for request in asked]
        assert [answer.finished().reason for answer in answers] == ["length"] * 4
        assert [answer.ticket.cached_tokens for answer in answers] == [0, 99, 99, 99]
        assert [answer.ids for answer in answers] == [alone(classic, r) for r in asked]


def test_answers_go_on_while_a_long_prompt_is_read(classic: GPT, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "piece_size", lambda _: 16)
    with scheduling(classic) as scheduler:
        answer = ask(scheduler, wanted(5, LONG))
        answer.wait_for(1)
        before = len(answer.tokens)
        late = ask(scheduler, wanted(400, 1))
        late.finished()
        assert len(answer.tokens) - before >= 400 // 16 - 1


def test_the_queue_is_bounded(classic: GPT) -> None:
    with scheduling(classic, slots=1, queue=2) as scheduler:
        running = ask(scheduler, wanted(count=LONG))
        running.wait_for(1)
        waiting = [ask(scheduler, wanted()) for _ in range(2)]
        with pytest.raises(Busy, match="The queue is full"):
            ask(scheduler, wanted())
        stats = scheduler.stats()
        assert (stats.queued, stats.running, stats.slots) == (2, 1, 1)
        waiting[0].ticket.cancel()
        again = ask(scheduler, wanted())
        running.ticket.cancel()
        assert waiting[1].finished() == again.finished() == Finished("length")
        assert len(waiting[1].ids) == len(again.ids) == 8
        assert not waiting[0].tokens


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"ids": ()}, "at least one token"),
        ({"max_tokens": 0}, "at least one"),
        ({"max_tokens": 503}, "context is 512"),
        ({"ids": (-1,)}, "vocabulary"),
        ({"ids": (99999,)}, "vocabulary"),
        ({"logit_bias": {265: 1.0}}, "vocabulary"),
        ({"seed": -1}, "64 bits"),
    ],
)
def test_what_cannot_be_answered_is_refused(classic: GPT, fault: Any, message: str) -> None:
    with scheduling(classic) as scheduler, pytest.raises(ValueError, match=message):
        scheduler.submit(replace(wanted(), **fault), Answer())


def test_one_that_fails_takes_down_no_other(classic: GPT) -> None:
    def failing(what: Token | Finished | Exception) -> None:
        raise RuntimeError("the client is gone")

    def failing_tool() -> Any:
        raise ZeroDivisionError

    with scheduling(classic, slots=3) as scheduler:
        good = ask(scheduler, wanted(count=50))
        scheduler.submit(wanted(), failing)
        bad = ask(scheduler, wanted(tools=failing_tool))
        with pytest.raises(ZeroDivisionError):
            bad.finished()
        assert len(bad.ids) == 1
        good.finished()
        assert good.ids == alone(classic, wanted(count=50))
        assert scheduler.stats().running == 0


EXHAUSTED = "[METAL] Command buffer execution failed: Insufficient Memory"


def break_model(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the next passes of one position fail, as an exhausted device would."""
    left, logits = [None] * times, GPT.logits

    def failing(self: GPT, x: mx.array) -> mx.array:
        if left and x.ndim == 3:
            left.pop()
            raise RuntimeError(EXHAUSTED)
        return logits(self, x)

    monkeypatch.setattr(GPT, "logits", failing)


def break_reading(
    monkeypatch: pytest.MonkeyPatch, longest: int, begun: threading.Event | None = None
) -> None:
    """Let passes of more positions than that fail, once ``begun`` is set."""
    features = GPT.features

    def failing(self: GPT, ids: mx.array, *rest: Any) -> mx.array:
        if ids.shape[1] > longest:
            assert begun is None or begun.wait(WAIT)
            raise RuntimeError(EXHAUSTED)
        return features(self, ids, *rest)

    monkeypatch.setattr(GPT, "features", failing)


def test_an_error_of_the_model_ends_what_runs_and_nothing_else(
    classic: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduling(classic, slots=2) as scheduler:
        running = [ask(scheduler, wanted(n, LONG)) for n in (5, 6)]
        for answer in running:
            answer.wait_for(2)
        waiting = ask(scheduler, wanted())
        break_model(monkeypatch, 1)
        for answer in running:
            with pytest.raises(DeviceError, match="out of memory"):
                answer.finished()
        assert waiting.finished().reason == "length"
        assert waiting.ids == alone(classic, wanted())
        assert scheduler.alive


def test_a_model_that_fails_again_and_again_is_dead(
    classic: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduling(classic, slots=1) as scheduler:
        break_model(monkeypatch, 99)
        answers = [ask(scheduler, wanted()) for _ in range(MOST_FAILURES + 2)]
        errors = []
        for answer in answers:
            assert answer.ended.wait(WAIT)
            errors.append(type(answer.end))
        assert errors == [DeviceError] * MOST_FAILURES + [Closed] * 2
        scheduler._thread.join(WAIT)
        assert not scheduler.alive
        with pytest.raises(Closed, match="out of memory"):
            ask(scheduler, wanted())


def test_a_prompt_that_cannot_be_read_ends_no_other_answer(
    classic: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reading(monkeypatch, longest=50)
    with scheduling(classic, slots=2) as scheduler:
        good = ask(scheduler, wanted(5, LONG))
        good.wait_for(1)
        for _ in range(MOST_FAILURES + 1):
            with pytest.raises(DeviceError, match="out of memory"):
                ask(scheduler, wanted(60)).finished()
        assert good.end is None
        assert good.finished().reason == "length"
        for _ in range(MOST_FAILURES + 1):  # nor the scheduler, when there is no other answer
            with pytest.raises(DeviceError):
                ask(scheduler, wanted(60)).finished()
        assert scheduler.alive
        last = ask(scheduler, wanted())
        last.finished()
    monkeypatch.undo()
    assert (good.ids, last.ids) == (alone(classic, wanted(5, LONG)), alone(classic, wanted()))


def test_a_model_that_can_read_nothing_is_dead(
    classic: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_queued = threading.Event()
    break_reading(monkeypatch, longest=0, begun=all_queued)
    with scheduling(classic, slots=1) as scheduler:
        answers = [ask(scheduler, wanted()) for _ in range(MOST_FAILURES + 1)]
        all_queued.set()
        for answer in answers:
            assert answer.ended.wait(WAIT)
        assert [type(answer.end) for answer in answers] == [DeviceError] * MOST_FAILURES + [Closed]


def test_an_answer_of_one_token_shows_that_the_model_works(
    classic: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scheduling(classic) as scheduler:
        for _ in range(MOST_FAILURES + 1):
            with monkeypatch.context() as patch:
                break_model(patch, 1)
                with pytest.raises(DeviceError):
                    ask(scheduler, wanted()).finished()
            ask(scheduler, wanted(count=1)).finished()
        assert scheduler.alive


def test_all_requests_end_even_when_cleaning_up_fails(
    classic: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [RuntimeError("[METAL] the device is gone")]

    def clear_cache() -> None:
        if failures:
            raise failures.pop()

    with scheduling(classic, slots=1) as scheduler:
        break_model(monkeypatch, 1)
        monkeypatch.setattr(mx, "clear_cache", clear_cache)
        with scheduler._changed:  # the model fails when all are queued
            answers = [ask(scheduler, wanted()) for _ in range(3)]
        for answer in answers:
            assert answer.ended.wait(WAIT)
        assert [type(answer.end) for answer in answers] == [DeviceError, Closed, Closed]
        scheduler._thread.join(WAIT)
        with pytest.raises(Closed, match="the device is gone"):
            ask(scheduler, wanted())


def test_the_log_has_the_traceback_of_each_failure_once(
    classic: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    with scheduling(classic, log=logged.append) as scheduler:
        running = [ask(scheduler, wanted(n, LONG)) for n in (5, 6)]
        for answer in running:
            answer.wait_for(2)
        break_model(monkeypatch, 1)
        for answer in running:
            with pytest.raises(DeviceError):
                answer.finished()
    [text] = logged
    assert text.startswith("Traceback (most recent call last):\n")
    assert "in _advance" in text
    assert text.endswith(f"RuntimeError: {EXHAUSTED}")


def test_closing_lets_what_runs_end(classic: GPT) -> None:
    scheduler = Scheduler(classic, slots=1)
    running, waiting = ask(scheduler, wanted(count=100)), ask(scheduler, wanted())
    running.wait_for(1)
    scheduler.close(WAIT)
    assert running.finished().reason == "length"
    assert len(running.ids) == 100
    with pytest.raises(Closed, match="stopping"):
        waiting.finished()
    with pytest.raises(Closed, match="stopping"):
        ask(scheduler, wanted())
    assert not scheduler.alive
    scheduler.close(0)


def test_closing_ends_what_takes_too_long(classic: GPT) -> None:
    scheduler = Scheduler(classic)
    answers = [ask(scheduler, wanted(n, LONG)) for n in (5, 6)]
    answers[0].wait_for(2)
    scheduler.close(0)
    for answer in answers:
        assert isinstance(answer.end, Closed)
        assert len(answer.ids) < LONG


def test_a_cancelled_request_hears_nothing_more(classic: GPT) -> None:
    with scheduling(classic, slots=1) as scheduler:
        answer = ask(scheduler, wanted(count=LONG))
        answer.wait_for(3)
        answer.ticket.cancel()
        ask(scheduler, wanted()).finished()
        assert len(answer.tokens) < LONG
        assert answer.end is None


def held() -> int:
    """Bytes in use, without the rotations of the positions that were read last."""
    rope._cos_sin.cache_clear()
    return memory_held()


def after_many(model: GPT, count: int, seed: int) -> None:
    """Requests of which half are cancelled: at once, in the queue, being read, or answered."""
    rng = random.Random(seed)
    with scheduling(model, slots=4, queue=count, cache_bytes=2**20) as scheduler:
        answers, left, hung_up = [], [], []
        for n in range(count):
            request = replace(wanted(rng.choice([1, 9, 100, 300]), rng.randint(1, 40)), seed=n)
            answer = ask(scheduler, request)
            if n % 2:
                answers.append((request, answer))
            else:
                left.append(answer)
            if n % 4 == 0:
                answer.ticket.cancel()
                hung_up.append(answer)
        for answer in left:
            if rng.random() < 0.5 and answer not in hung_up:
                answer.wait_for(1)
            answer.ticket.cancel()
        for request, answer in answers:
            assert answer.finished().reason == "length"
            assert len(answer.ids) == request.max_tokens
        stats = scheduler.stats()
        assert (stats.queued, stats.running) == (0, 0)
        assert stats.cache_bytes <= 2**20
        last = ask(scheduler, wanted(20, 20))
        last.finished()
        assert last.ids == alone(model, wanted(20, 20))


def test_nothing_is_left_of_many_requests(classic: GPT) -> None:
    after_many(classic, 16, 0)
    before = held()
    after_many(classic, 60, 1)
    assert held() <= before


@pytest.mark.slow
def test_nothing_is_left_of_200_requests(model: GPT) -> None:
    after_many(model, 16, 0)
    before, threads = held(), threading.active_count()
    after_many(model, 200, 2)
    assert held() <= before
    assert threading.active_count() == threads


def test_an_idle_scheduler_holds_no_more_than_its_cache(classic: GPT) -> None:
    after_many(classic, 16, 0)
    before, tokens = held(), 2**10
    with scheduling(classic, cache_bytes=2**18) as scheduler:
        for n in (100, 200, 300):
            ask(scheduler, wanted(n, 30)).finished()
        ask(scheduler, wanted(1, 1)).finished()
        kept = scheduler.stats().cache_bytes
        assert kept > 0
        assert held() <= before + kept + tokens


def test_pieces_are_longer_for_smaller_models() -> None:
    sizes = [
        piece_size(GPTConfig.from_depth(depth, vocab_size=4096, sequence_len=2048))
        for depth in (2, 6, 12, 26)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size & (size - 1) == 0 and 32 <= size <= 2048 for size in sizes)
