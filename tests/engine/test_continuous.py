"""Sequences that come and go, against each of them alone."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.memory import memory_held
from support.models import network

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import KVCache
from mlxchat.engine.continuous import ActiveSequence, ContinuousBatch, GeneratedToken, TokenSettings
from mlxchat.engine.generate import generate, prefill
from mlxchat.engine.sampling import make_sampler
from mlxchat.model import rope
from mlxchat.model.block import Attention
from mlxchat.model.gpt import GPT
from mlxchat.model.size import CACHE_STEP
from mlxchat.runtime import mx

NEVER: frozenset[int] = frozenset()
CHOICES = [
    TokenSettings(Sampling(temperature=0)),
    TokenSettings(Sampling(temperature=1.5, top_k=20), seed=1),
    TokenSettings(Sampling(temperature=2.0, top_k=None, repetition_penalty=1.2), seed=2),
    TokenSettings(Sampling(temperature=1.5, top_k=None, top_p=0.7), seed=3),
    TokenSettings(Sampling(temperature=1.0, min_p=0.05), seed=4, presence_penalty=1.5),
    TokenSettings(Sampling(temperature=0), frequency_penalty=0.7, logit_bias={5: 3.0, 9: -100}),
]


@pytest.fixture
def _uncompiled() -> Iterator[None]:
    """Compiling takes seconds, and computes nothing else."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module", params=["classic", "modern"])
def plain(request: pytest.FixtureRequest) -> GPT:
    return network(1024, request.param).model  # the windows of the modern model are 256 then


@pytest.fixture(scope="module")
def stepping(plain: GPT) -> GPT:
    """The same network with a step, as on GPUs."""
    model = network(1024, plain.config.arch).model
    model.prepare_for_inference(compiled=True)
    return model


def drawn(length: int) -> list[int]:
    return mx.random.randint(0, 256, (length,), key=mx.random.key(length)).tolist()


class Company:
    """A batch, and what each of its members was told."""

    def __init__(self, model: GPT) -> None:
        self.model, self.batch = model, ContinuousBatch(model)
        self.told: dict[ActiveSequence, list[GeneratedToken]] = {}

    def join(self, ids: list[int], choice: TokenSettings) -> ActiveSequence:
        cache = KVCache(self.model.config, whole=True)
        logits = prefill(self.model, ids, cache)
        member, first = self.batch.join(ids, self.batch.layout.past(cache), logits, choice)
        self.told[member] = [first]
        return member

    def steps(self, count: int) -> None:
        for _ in range(count):
            for member, chosen in self.batch.step():
                self.told[member].append(chosen)

    def ids(self, member: ActiveSequence) -> list[int]:
        return [chosen.id for chosen in self.told[member]]


def alone(model: GPT, ids: list[int], choice: TokenSettings, count: int) -> list[int]:
    company = Company(model)
    member = company.join(ids, choice)
    while len(company.told[member]) < count:
        company.steps(1)
    return company.ids(member)[:count]


@pytest.mark.parametrize("choice", CHOICES[:4])
def test_one_member_is_generated_as_by_generate(plain: GPT, choice: TokenSettings) -> None:
    ids, sampling = drawn(40), choice.sampling
    expected = generate(
        plain, ids, KVCache(plain.config), make_sampler(sampling), key=mx.random.key(choice.seed),
        stop=NEVER, max_tokens=30, repetition_penalty=sampling.repetition_penalty,
    )  # fmt: skip
    assert alone(plain, ids, choice, 30) == list(expected)


def coming_and_going(model: GPT) -> Iterator[tuple[list[int], TokenSettings, list[int]]]:
    """Members of all lengths and choices join late and leave early, past growths and windows."""
    company, lengths = Company(model), [3, CACHE_STEP - 5, 300, 20, 1, 90]
    members = []
    for length, choice in zip(lengths, CHOICES, strict=True):
        members.append((company.join(drawn(length), choice), length, choice))
        company.steps(4)
        if length in (300, 1):
            company.batch.leave(members[0 if length == 300 else 3][0])
            company.steps(3)
    late = company.join(drawn(7), CHOICES[1])
    company.steps(8)
    for member, length, choice in [*members, (late, 7, CHOICES[1])]:
        yield drawn(length), choice, company.ids(member)


def test_tokens_in_company_are_those_alone(plain: GPT) -> None:
    for ids, choice, said in coming_and_going(plain):
        assert said == alone(plain, ids, choice, len(said))


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("ahead", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_compiled_step_gives_the_same_tokens(
    plain: GPT, stepping: GPT, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxchat.engine.continuous.launches_ahead", lambda: ahead)
    for ids, choice, said in coming_and_going(stepping):
        assert len(said) > 4
        assert said == alone(stepping, ids, choice, len(said))
    assert said == alone(plain, ids, choice, len(said))


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("ahead", [False, True])
def test_a_forced_token_is_the_next_one(
    stepping: GPT, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxchat.engine.continuous.launches_ahead", lambda: ahead)
    company = Company(stepping)
    other = company.join(drawn(20), CHOICES[0])
    company.steps(3)
    member = company.join(drawn(30), TokenSettings(Sampling(temperature=0), logprobs=0))
    company.batch.force(member, 77)
    company.steps(3)
    assert [chosen.forced for chosen in company.told[member]][:2] == [False, True]
    first, forced, then, *_ = company.told[member]
    assert forced.id == 77
    ids = [*drawn(30), first.id, forced.id]
    logits = stepping(mx.array([ids]))[0, -2:]
    expected = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
    assert forced.logprob == pytest.approx(
        (stepping(mx.array([ids]))[0, -2] - mx.logsumexp(logits[0])).tolist()[77], abs=1e-3
    )
    assert then.id == max(range(256), key=lambda n: expected[1][n])
    assert company.ids(other) == alone(stepping, drawn(20), CHOICES[0], len(company.ids(other)))


def test_log_probabilities_are_the_models_own(plain: GPT) -> None:
    """Whatever the temperature, the penalties and the bias; each as many as asked for."""
    company, ids = Company(plain), drawn(25)
    asked = TokenSettings(Sampling(temperature=2.0, repetition_penalty=2), 1, 1.0, 1.0, {3: 9.0}, 3)
    member = company.join(ids, asked)
    silent, own = company.join(ids, CHOICES[0]), company.join(ids, TokenSettings(logprobs=0))
    company.steps(6)
    assert all(chosen[2:] == (None, ()) for chosen in company.told[silent])
    assert all(chosen.logprob is not None and not chosen.top for chosen in company.told[own])
    said = company.ids(member)
    logits = plain(mx.array([ids + said]))[0, len(ids) - 1 : -1]
    logprobs = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
    for chosen, expected in zip(company.told[member], logprobs, strict=True):
        assert chosen.logprob == pytest.approx(expected[chosen.id], abs=1e-4)
        likeliest = sorted(expected, reverse=True)[:3]
        assert [value for _, value in chosen.top] == pytest.approx(likeliest, abs=1e-4)
        assert all(expected[token] == pytest.approx(v, abs=1e-4) for token, v in chosen.top)


def test_penalties_and_bias_follow_their_formulas(plain: GPT) -> None:
    """Greedy tokens by hand, from the model's logits at each position."""
    choice = TokenSettings(
        Sampling(temperature=0, repetition_penalty=1.4), 0, 2.0, 1.5, {8: 4.0, 60: -100.0}
    )
    ids = drawn(12)
    said = alone(plain, ids, choice, 25)
    for n, token in enumerate(said):
        before, logits = said[:n], plain(mx.array([ids + said[:n]]))[0, -1].tolist()
        for other in {*ids, *before}:
            logits[other] *= 1.4 if logits[other] < 0 else 1 / 1.4
        for other in set(before):
            logits[other] -= 2.0 + 1.5 * before.count(other)
        logits[8] += 4.0
        logits[60] -= 100.0
        assert logits[token] == pytest.approx(max(logits), abs=1e-4)


def test_what_a_member_has_read_can_be_continued(plain: GPT) -> None:
    company = Company(plain)
    other = company.join(drawn(50), CHOICES[1])
    member = company.join(drawn(CACHE_STEP + 60), CHOICES[0])
    company.steps(5)
    company.batch.leave(other)
    ids, past = company.batch.past(member)
    assert ids == (drawn(CACHE_STEP + 60) + company.ids(member))[:-1]
    for length in (1, 30, CACHE_STEP, len(ids)):  # any beginning, whatever the window
        cache = company.batch.layout.cache(ids[:length], past)
        more = prefill(plain, [4, 5, 6], cache)
        assert mx.allclose(more, plain(mx.array([[*ids[:length], 4, 5, 6]]))[:, -1], atol=1e-4)


def test_nothing_is_held_after_all_have_left(plain: GPT) -> None:
    company = Company(plain)
    company.join(drawn(5), CHOICES[0])
    company.batch.leave(company.batch.members[0])
    company.told.clear()
    rope._cos_sin.cache_clear()  # it keeps the latest rotations, of whatever lengths
    before = memory_held()
    for choice in CHOICES:
        company.join(drawn(300), choice)
        company.steps(2)
    assert mx.get_active_memory() > before + 2**20
    for member in list(company.batch.members):
        company.batch.leave(member)
        company.told.clear()
    rope._cos_sin.cache_clear()
    assert memory_held() <= before


def test_the_buffers_are_written_in_place(plain: GPT) -> None:
    company = Company(plain)
    for length in (500, 600, 700, 710):
        company.join(drawn(length), CHOICES[0])
    company.steps(2)
    before, size = memory_held(), sum(b.nbytes for b in company.batch._rows.arrays())
    company.steps(4)
    assert mx.get_peak_memory() - before < size / 2


@pytest.mark.slow
def test_traces_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each power of two of rows and size of buffers, however many join and leave."""
    model: Any = network(1024).model
    model.prepare_for_inference(compiled=True)
    company = Company(model)
    traced, qkv = [], Attention.qkv

    def noted(self: Attention, x: Any, *others: Any) -> Any:
        if x.stream.shape[1] == 1:
            traced.append(x.stream.shape[0])
        return qkv(self, x, *others)

    monkeypatch.setattr(Attention, "qkv", noted)
    for round in range(3):
        members = [company.join(drawn(10 + n + round), CHOICES[n % 4]) for n in range(4)]
        for member in members:
            company.steps(3)
            company.batch.leave(member)
    assert sorted(traced) == [1, 1, 4, 4]  # two layers each
