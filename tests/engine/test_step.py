"""Decoding by a compiled step on buffers of fixed size, as on GPUs, against exact computations."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import pytest
from support.memory import memory_held
from support.models import network

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import continue_greedily, generate, generate_batch
from mlxchat.engine.sampling import make_sampler
from mlxchat.model.block import Attention
from mlxchat.model.gpt import GPT
from mlxchat.model.size import CACHE_STEP
from mlxchat.runtime import mx

NEVER: frozenset[int] = frozenset()
CONTEXT = 1024  # the windows of the modern model are 256 then
HOT = make_sampler(Sampling(temperature=2.0, top_k=20, top_p=0.9))


@pytest.fixture
def _uncompiled() -> Iterator[None]:
    """Compiling takes seconds, and computes nothing else."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module", params=[pytest.param("classic", marks=pytest.mark.slow), "modern"])
def plain(request: pytest.FixtureRequest) -> GPT:
    return prepared(request.param, compiled=False)


@pytest.fixture(scope="module")
def model(plain: GPT) -> GPT:
    """The same network with a step."""
    return prepared(plain.config.arch, compiled=True)


def prepared(arch: Any, compiled: bool) -> GPT:
    model = network(CONTEXT, arch).model
    model.prepare_for_inference(compiled)
    return model


def drawn(*lengths: int) -> list[list[int]]:
    return [mx.random.randint(0, 256, (n,), key=mx.random.key(n)).tolist() for n in lengths]


def likeliest(model: GPT, ids: list[int], said: list[int]) -> list[int]:
    """The tokens of a pass without a cache at each position after which a token was said."""
    logits = model(mx.array([ids + said]))[0, len(ids) - 1 : -1]
    return mx.argmax(logits, axis=-1).tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("_uncompiled")
def test_tokens_are_those_of_a_pass_without_a_cache(model: GPT) -> None:
    """They cross two growths of the buffers, and the window twice."""
    (ids,) = drawn(100)
    said = list(generate(model, ids, KVCache(model.config), stop=NEVER, max_tokens=520))
    assert likeliest(model, ids, said) == said
    assert len(set(said)) > 20


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("ahead", [False, True])
def test_prompts_of_unequal_lengths_are_continued_as_each_alone(
    model: GPT, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxchat.engine.generate.launches_ahead", lambda: ahead)
    prompts = drawn(3, 300, CACHE_STEP - 3, 200, 20)
    together = continue_greedily(model, prompts, NEVER, 40)
    assert together == [likeliest(model, *pair) for pair in zip(prompts, together, strict=True)]


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_draws_are_those_without_a_step(plain: GPT, model: GPT, penalty: float) -> None:
    prompts, key = drawn(3, 30), mx.random.key(4)

    def alone(model: GPT) -> list[int]:
        cache = KVCache(model.config)
        return list(
            generate(
                model, prompts[0], cache, HOT, key=key, stop=NEVER, max_tokens=30,
                repetition_penalty=penalty, tools=lambda: {7: 8, 8: 9}.get,
            )
        )  # fmt: skip

    def together(model: GPT) -> list[list[int | None]]:
        return list(
            generate_batch(
                model, prompts, HOT, key=key, stop=NEVER, max_tokens=30, repetition_penalty=penalty
            )
        )

    assert alone(model) == alone(plain)
    assert together(model) == together(plain)


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("ending", ["closed", "stop token", "interrupted", "limit"])
def test_the_cache_holds_what_was_yielded_however_it_ends(
    model: GPT, ending: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxchat.engine.generate.launches_ahead", lambda: ahead)
    (ids,), cache, count = drawn(CACHE_STEP + 10), KVCache(model.config), 6
    expected = list(generate(model, ids, KVCache(model.config), stop=NEVER, max_tokens=count + 1))
    stop = frozenset(expected[count:]) if ending == "stop token" else NEVER
    limit = count if ending == "limit" else 99
    said = []
    if ending == "interrupted":
        interrupt_after(monkeypatch, count)
    with closing(generate(model, ids, cache, stop=stop, max_tokens=limit)) as tokens:
        try:
            said += islice(tokens, count) if ending == "closed" else tokens
        except KeyboardInterrupt:
            monkeypatch.undo()
    said = expected[: cache.offset - len(ids)] if ending == "interrupted" else said
    assert [layer.offset for layer in cache.layers] == [len(ids) + len(said)] * 2
    assert said == expected[:count][: len(said)]
    new = [5, 6, 7]
    more = list(generate(model, new, cache, stop=NEVER, max_tokens=8))
    assert more == likeliest(model, [*ids, *said, *new], more)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Interrupt the second layer in the step after so many."""
    calls, attend = [], Attention.attend

    def interrupting(self: Attention, *arrays: Any) -> mx.array:
        calls.append(arrays)
        if len(calls) == 2 * (1 + steps) + 2:
            raise KeyboardInterrupt
        return attend(self, *arrays)

    monkeypatch.setattr(Attention, "attend", interrupting)


@pytest.mark.usefixtures("_uncompiled")
def test_the_buffers_are_written_in_place() -> None:
    """The formula copies those of a layer at a time; a copy of all of them would be seen."""
    config = network(CONTEXT).model.config.model_copy(update={"n_layer": 8})
    model, cache = GPT.new(config), KVCache(config)
    model.prepare_for_inference(compiled=True)
    tokens = generate(model, drawn(4 * CACHE_STEP - 40)[0], cache, stop=NEVER, max_tokens=30)
    list(islice(tokens, 3))
    before, size = memory_held(), cache.layers[0].buffers[0].nbytes
    list(tokens)
    assert mx.get_peak_memory() - before < 5 * size  # of 16


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_traces_are_few(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be kept for ever. Buffers of 256, 512 and 1,024 positions are traced once each."""
    model, traced = prepared(arch, compiled=True), count_calls(monkeypatch, Attention, "qkv")
    cache = KVCache(model.config)
    for turn in (5, 300):
        (ids,) = drawn(turn)
        said = list(generate(model, ids, cache, HOT, stop=NEVER, max_tokens=300))
    monkeypatch.undo()
    passes = 2 * 2  # layers, prompts
    assert len(said) == 300
    assert len(traced) == passes + 3 * 2


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Return a list that grows by one item with every call of a method."""
    called: Callable[..., Any] = getattr(owner, name)
    calls = list[None]()

    def counted(*positional: Any, **keywords: Any) -> Any:
        calls.append(None)
        return called(*positional, **keywords)

    monkeypatch.setattr(owner, name, counted)
    return calls
