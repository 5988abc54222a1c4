from collections.abc import Sequence
from contextlib import closing
from itertools import islice

import pytest
from support.cases import GOLDEN, golden

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import generate, prefill
from mlxchat.engine.sampling import make_sampler
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

NEVER: frozenset[int] = frozenset()
KEY = mx.random.key(0)


@pytest.fixture(scope="module", params=["classic", "modern"])
def case(request: pytest.FixtureRequest) -> dict:
    return golden(f"{request.param}/case.json")


@pytest.fixture(scope="module")
def model(case: dict) -> GPT:
    model = GPT(GPTConfig(arch=case["arch"], **case["config"]))
    model.load_weights(str(GOLDEN / case["arch"] / "weights.safetensors"))
    return model


def greedy_without_cache(model: GPT, ids: Sequence[int], count: int) -> list[int]:
    tokens = list(ids)
    for _ in range(count):
        tokens.append(mx.argmax(model(mx.array([tokens]))[0, -1]).item())
    return tokens[len(ids) :]


def test_greedy_tokens_equal_nanochats(model: GPT, case: dict) -> None:
    tokens = generate(
        model, case["greedy_prompt"], KVCache(model.config), stop=NEVER, max_tokens=20
    )
    assert list(tokens) == case["greedy"]


@pytest.mark.parametrize("length", [8, 120])  # the shortest window is 128
def test_greedy_equals_the_full_pass_without_cache(model: GPT, length: int) -> None:
    length = min(length, model.config.sequence_len - 30)
    ids = mx.random.randint(0, 97, (length,), key=KEY).tolist()
    tokens = generate(model, ids, KVCache(model.config), stop=NEVER, max_tokens=30)
    assert list(tokens) == greedy_without_cache(model, ids, 30)


@pytest.mark.parametrize("chunk", [1, 5, 39, 40])
def test_chunked_prefill_equals_one_pass(model: GPT, chunk: int) -> None:
    ids = mx.random.randint(0, 97, (40,), key=KEY).tolist()
    whole, chunked = KVCache(model.config), KVCache(model.config)
    expected = prefill(model, ids, whole)
    assert mx.allclose(expected, model(mx.array([ids]))[:, -1], atol=1e-4)
    assert mx.allclose(prefill(model, ids, chunked, chunk), expected, atol=1e-4)
    assert [layer.offset for layer in chunked.layers] == [40] * 4


def test_ids_continue_what_the_cache_holds(model: GPT) -> None:
    ids, cache = [3, 1, 4, 1, 5, 9, 2, 6], KVCache(model.config)
    prefill(model, ids[:5], cache)
    tokens = generate(model, ids[5:], cache, stop=NEVER, max_tokens=9)
    assert list(tokens) == greedy_without_cache(model, ids, 9)


def test_stop_token_is_neither_yielded_nor_held(model: GPT, case: dict) -> None:
    ids, cache = case["greedy_prompt"], KVCache(model.config)
    stop = case["greedy"][6]
    tokens = generate(model, ids, cache, stop=frozenset({stop}), max_tokens=20)
    assert list(tokens) == case["greedy"][:6]
    assert [layer.offset for layer in cache.layers] == [len(ids) + 6] * 4


@pytest.mark.slow
def test_a_stop_token_is_forgotten_when_windows_have_moved_on(model: GPT) -> None:
    ids = mx.random.randint(0, 97, (20,), key=KEY).tolist()
    count = model.config.sequence_len - 40
    cache = KVCache(model.config)
    tokens = list(generate(model, ids, cache, stop=NEVER, max_tokens=count))
    unseen = next(token for token in range(97) if token not in tokens)
    sample = iter([*tokens, unseen, unseen]).__next__  # recites, then ends
    cache = KVCache(model.config)
    recited = generate(
        model,
        ids,
        cache,
        lambda _, key: (mx.array([sample()]), key),
        stop=frozenset({unseen}),
        max_tokens=99999,
    )
    assert list(recited) == tokens
    assert cache.offset == len(ids) + count
    more = list(generate(model, [5, 6], cache, stop=NEVER, max_tokens=8))
    assert more == greedy_without_cache(model, [*ids, *tokens, 5, 6], 8)


def test_all_yielded_tokens_are_held(model: GPT, case: dict) -> None:
    ids, cache = case["greedy_prompt"], KVCache(model.config)
    tokens = generate(model, ids, cache, stop=NEVER, max_tokens=4)
    assert list(tokens) == case["greedy"][:4]
    assert [layer.offset for layer in cache.layers] == [len(ids) + 4] * 4


def test_a_closed_generators_cache_continues_from_what_was_yielded(model: GPT, case: dict) -> None:
    ids, cache = case["greedy_prompt"], KVCache(model.config)
    with closing(generate(model, ids, cache, stop=NEVER, max_tokens=20)) as tokens:
        said = list(islice(tokens, 5))
    assert [layer.offset for layer in cache.layers] == [len(ids) + 5] * 4
    new = [11, 12]
    tokens = generate(model, new, cache, stop=NEVER, max_tokens=8)
    assert list(tokens) == greedy_without_cache(model, [*ids, *said, *new], 8)


def test_an_interruption_inside_the_network_keeps_what_was_yielded(
    model: GPT, case: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, cache, passes, logits = case["greedy_prompt"], KVCache(model.config), [], GPT.logits

    def interrupt(self: GPT, x: mx.array) -> mx.array:
        passes.append(x)
        if len(passes) == 4:  # the prompt, and three tokens
            raise KeyboardInterrupt
        return logits(self, x)

    monkeypatch.setattr(GPT, "logits", interrupt)
    tokens = generate(model, ids, cache, stop=NEVER, max_tokens=20)
    said = [next(tokens), next(tokens)]
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    monkeypatch.undo()
    assert said == case["greedy"][:2]
    assert [layer.offset for layer in cache.layers] == [len(ids) + 2] * 4
    again = generate(model, [7], cache, stop=NEVER, max_tokens=8)
    assert list(again) == greedy_without_cache(model, [*ids, *said, 7], 8)


def test_an_interruption_inside_the_prompt_leaves_all_layers_alike(model: GPT) -> None:
    def interrupt(keys: mx.array, values: mx.array) -> None:
        raise KeyboardInterrupt

    cache = KVCache(model.config)
    prefill(model, [1, 2, 3], cache)
    cache.layers[2].extend = interrupt
    with pytest.raises(KeyboardInterrupt):
        next(generate(model, [4, 5], cache, stop=NEVER, max_tokens=1))
    assert [layer.offset for layer in cache.layers] == [3] * 4


def test_the_same_key_draws_the_same_tokens(model: GPT) -> None:
    sampling = Sampling(temperature=2.0, top_k=None)

    def tokens(seed: int) -> list[int]:
        key, cache = mx.random.key(seed), KVCache(model.config)
        sample = make_sampler(sampling)
        return list(generate(model, [1], cache, sample, key=key, stop=NEVER, max_tokens=20))

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_a_large_penalty_repeats_nothing(model: GPT, case: dict) -> None:
    ids, before = case["greedy_prompt"], [92, 60]
    cache = KVCache(model.config)
    tokens = list(
        generate(model, ids, cache, stop=NEVER, max_tokens=20, repetition_penalty=1e6, seen=before)
    )
    said = {*ids, *before}
    assert len({*tokens, *said}) == len(tokens) + len(said)


def test_stop_tokens_are_not_penalised(model: GPT, case: dict) -> None:
    first = case["greedy"][0]
    cache = KVCache(model.config)
    tokens = generate(
        model,
        case["greedy_prompt"],
        cache,
        stop=frozenset({first, *case["greedy_prompt"]}),
        repetition_penalty=1e6,
        max_tokens=5,
        seen=[first],
    )
    assert list(tokens) == []


def test_an_empty_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="no token"):
        next(generate(model, [], KVCache(model.config), stop=NEVER, max_tokens=1))
