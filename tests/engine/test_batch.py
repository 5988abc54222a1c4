from collections.abc import Sequence

import pytest
from support.cases import GOLDEN, golden

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import BatchCache, KVCache
from mlxchat.engine.generate import continue_greedily, generate, generate_batch, prefill
from mlxchat.engine.sampling import make_sampler
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.size import CACHE_STEP
from mlxchat.runtime import mx

NEVER: frozenset[int] = frozenset()
KEY = mx.random.key(0)


@pytest.fixture(scope="module", params=["classic", "modern"])
def model(request: pytest.FixtureRequest) -> GPT:
    case = golden(f"{request.param}/case.json")
    # Twice the context of the goldens: rows then outgrow windows and buffers.
    config = GPTConfig(arch=case["arch"], **{**case["config"], "sequence_len": 512})
    model = GPT(config)
    model.load_weights(str(GOLDEN / case["arch"] / "weights.safetensors"))
    return model


def drawn(*lengths: int) -> list[list[int]]:
    keys = mx.random.split(KEY, len(lengths))
    return [
        mx.random.randint(0, 97, (n,), key=k).tolist() for n, k in zip(lengths, keys, strict=True)
    ]


def alone(model: GPT, ids: Sequence[int], count: int, stop: frozenset[int] = NEVER) -> list[int]:
    cache = KVCache(model.config)
    return list(generate(model, ids, cache, stop=stop, max_tokens=count))


@pytest.mark.parametrize(
    "lengths",
    [(5,), (7, 7, 7), (1, 9, 4, 30), (2, 140, 60), (CACHE_STEP - 3, 1), (1, 129, 128, 127)],
)
def test_each_row_gets_the_logits_it_gets_alone(model: GPT, lengths: tuple[int, ...]) -> None:
    caches = [KVCache(model.config) for _ in lengths]
    for ids, cache in zip(drawn(*lengths), caches, strict=True):
        prefill(model, ids, cache)
    batch = BatchCache(caches)
    for following in range(12):
        tokens = mx.array([(7 * following + row) % 97 for row in range(len(lengths))])
        expected = mx.concatenate(
            [model(tokens[row : row + 1, None], cache)[:, -1] for row, cache in enumerate(caches)]
        )
        assert mx.allclose(model(tokens[:, None], batch)[:, -1], expected, atol=1e-4)


@pytest.mark.slow
def test_prompts_of_unequal_lengths_are_continued_as_each_alone(model: GPT) -> None:
    prompts = drawn(3, 150, 20, 1, 64, 64, 9, 2, 31, 130, 5, 5, 77, 12, 8, 40)
    together = continue_greedily(model, prompts, NEVER, 25)
    assert together == [alone(model, ids, 25) for ids in prompts]


def test_each_ends_at_its_own_stop_token(model: GPT) -> None:
    prompts = drawn(3, 15, 20)
    texts = [alone(model, ids, 20) for ids in prompts]
    stop = frozenset({texts[0][4], texts[1][9]})
    together = continue_greedily(model, prompts, stop, 20)
    assert together == [alone(model, ids, 20, stop) for ids in prompts]
    assert len({len(tokens) for tokens in together}) > 1


def test_ended_prompts_yield_none_until_all_have(model: GPT) -> None:
    prompts = drawn(3, 15, 20)
    stop = frozenset({alone(model, prompts[0], 20)[4], alone(model, prompts[1], 20)[9]})
    steps = list(generate_batch(model, prompts, stop=stop, max_tokens=20))
    texts = [alone(model, ids, 20, stop) for ids in prompts]
    assert len(steps) == max(map(len, texts))
    for text, tokens in zip(texts, zip(*steps, strict=True), strict=True):
        assert list(tokens) == [*text, *[None] * (len(steps) - len(text))]


def test_samples_of_one_prompt_share_its_prefill_and_differ(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    features = GPT.features

    def noted(self: GPT, ids: mx.array, cache: KVCache) -> mx.array:
        passes.append(ids.shape)
        return features(self, ids, cache)

    monkeypatch.setattr(GPT, "features", noted)
    prompt, *_ = drawn(30)
    hot = make_sampler(Sampling(temperature=2.0, top_k=None))
    steps = list(generate_batch(model, [prompt] * 4, hot, key=KEY, stop=NEVER, max_tokens=8))
    assert len({tuple(tokens) for tokens in zip(*steps, strict=True)}) == 4
    assert passes == [(1, 30)] + [(4, 1)] * 8


def test_the_penalty_counts_each_rows_own_tokens(model: GPT) -> None:
    never_again = {"stop": NEVER, "max_tokens": 12, "repetition_penalty": 1e6}
    prompts = drawn(3, 15)
    steps = list(generate_batch(model, prompts, **never_again))
    for ids, tokens in zip(prompts, zip(*steps, strict=True), strict=True):
        cache = KVCache(model.config)
        expected = generate(model, ids, cache, **never_again)
        assert list(tokens) == list(expected)


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_an_empty_prompt_is_refused(model: GPT, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="no token"):
        next(generate_batch(model, prompts, stop=NEVER, max_tokens=1))


def test_more_than_a_position_is_refused(model: GPT) -> None:
    cache = KVCache(model.config)
    prefill(model, [1, 2, 3], cache)
    with pytest.raises(ValueError, match="one position, not 2"):
        model(mx.array([[4, 5]]), BatchCache([cache]))
