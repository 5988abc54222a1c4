import pytest

from mlxchat.engine.cache import STEP, KVCache, make_cache
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx


def draw(batch: int, positions: int, seed: int) -> tuple[mx.array, mx.array]:
    keys, values = mx.random.normal((2, batch, 3, positions, 4), key=mx.random.key(seed))
    return keys, values


@pytest.mark.parametrize("batch", [1, 2])
def test_holds_what_concatenation_would(batch: int) -> None:
    cache = KVCache()
    pieces = [draw(batch, T, seed) for seed, T in enumerate([5, 1, 1, STEP - 7, 1, 1, 2 * STEP])]
    for i, (keys, values) in enumerate(pieces):
        held_keys, held_values = cache.extend(keys, values)
        so_far = pieces[: i + 1]
        assert mx.array_equal(held_keys, mx.concatenate([k for k, _ in so_far], axis=2))
        assert mx.array_equal(held_values, mx.concatenate([v for _, v in so_far], axis=2))
        assert cache.offset == held_keys.shape[2]


def test_earlier_views_survive_later_writes() -> None:
    cache = KVCache()
    keys, values = draw(1, 4, 0)
    view, _ = cache.extend(keys, values)
    cache.trim(0)
    cache.extend(*draw(1, 4, 1))
    assert mx.array_equal(view, keys)


def test_trimmed_tail_is_replaced() -> None:
    cache = KVCache()
    keys, values = draw(1, STEP + 10, 0)
    cache.extend(keys, values)
    cache.trim(STEP + 2)
    more_keys, more_values = draw(1, STEP, 1)
    held, _ = cache.extend(more_keys, more_values)
    assert mx.array_equal(held, mx.concatenate([keys[:, :, : STEP + 2], more_keys], axis=2))


@pytest.mark.parametrize("length", [-1, 4])
def test_trimming_to_what_is_not_there_is_refused(length: int) -> None:
    cache = KVCache()
    cache.extend(*draw(1, 3, 0))
    with pytest.raises(ValueError, match=f"3 positions to {length}"):
        cache.trim(length)


def test_keeps_the_dtype_of_the_keys() -> None:
    cache = KVCache()
    keys, _ = cache.extend(*(x.astype(mx.bfloat16) for x in draw(1, 3, 0)))
    assert keys.dtype == mx.bfloat16


def test_one_cache_for_every_layer() -> None:
    config = GPTConfig(n_layer=3, n_head=2, n_kv_head=1, n_embd=16, vocab_size=11)
    model = GPT(config)
    cache = make_cache(model)
    assert len(cache) == 3
    model(mx.array([[1, 2, 3], [4, 5, 6]]), cache)
    assert [layer.offset for layer in cache] == [3, 3, 3]
