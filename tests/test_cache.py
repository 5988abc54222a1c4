import pytest

from mlxchat.engine.cache import STEP, Cache, KVCache, WindowCache
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
        held_keys, held_values, _ = cache.extend(keys, values)
        so_far = pieces[: i + 1]
        assert mx.array_equal(held_keys, mx.concatenate([k for k, _ in so_far], axis=2))
        assert mx.array_equal(held_values, mx.concatenate([v for _, v in so_far], axis=2))
        assert cache.offset == held_keys.shape[2]


def test_earlier_views_survive_later_writes() -> None:
    cache = KVCache()
    keys, values = draw(1, 4, 0)
    view, _, _ = cache.extend(keys, values)
    cache.offset = 0
    cache.extend(*draw(1, 4, 1))
    assert mx.array_equal(view, keys)


def test_a_forgotten_tail_is_replaced() -> None:
    cache = KVCache()
    keys, values = draw(1, STEP + 10, 0)
    cache.extend(keys, values)
    cache.offset = STEP + 2
    more_keys, more_values = draw(1, STEP, 1)
    held, _, _ = cache.extend(more_keys, more_values)
    assert mx.array_equal(held, mx.concatenate([keys[:, :, : STEP + 2], more_keys], axis=2))


def test_keeps_the_dtype_of_the_keys() -> None:
    for cache in (KVCache(), WindowCache(8)):
        keys, _, _ = cache.extend(*(x.astype(mx.bfloat16) for x in draw(1, 3, 0)))
        assert keys.dtype == mx.bfloat16


@pytest.mark.parametrize("pieces", [[1] * 30, [3, 1, 1, 9, 1, 20, 1], [8, 1, 8, 1], [40, 1, 1, 40]])
def test_a_window_shows_what_can_be_seen_and_holds_no_more(pieces: list[int]) -> None:
    window, cache = 8, WindowCache(8)
    every, _ = draw(2, sum(pieces), 0)
    end = 0
    for T in pieces:
        start, end = end, end + T
        shown, values, _ = cache.extend(every[:, :, start:end], -every[:, :, start:end])
        expected = every[:, :, max(0, start - window) : end]
        if T == 1:  # in any order
            shown, expected = mx.sort(shown, axis=2), mx.sort(expected, axis=2)
            assert mx.array_equal(mx.sort(-values, axis=2), expected)
        else:
            assert mx.array_equal(values, -shown)
        assert mx.array_equal(shown, expected)
        assert cache.offset == end
        assert cache._keys.shape[2] == window + 1


@pytest.mark.parametrize(("read", "smallest"), [(5, 0), (9, 0), (10, 9), (30, 29)])
def test_how_far_a_window_can_go_back(read: int, smallest: int) -> None:
    cache = WindowCache(8)
    every, _ = draw(1, 31, 0)
    cache.extend(every[:, :, :read], every[:, :, :read])
    assert [n for n in range(read + 1) if cache.can_trim(n)] == list(range(smallest, read + 1))
    cache.offset = smallest
    shown, _, _ = cache.extend(every[:, :, smallest : smallest + 1], every[:, :, :1])
    expected = every[:, :, max(0, smallest - 8) : smallest + 1]
    assert mx.array_equal(mx.sort(shown, axis=2), mx.sort(expected, axis=2))


def test_twice_back_is_once_too_often() -> None:
    cache = WindowCache(8)
    every, _ = draw(1, 31, 0)
    cache.extend(every[:, :, :10], every[:, :, :10])
    cache.offset = 9
    assert [n for n in range(10) if cache.can_trim(n)] == [9]
    cache.extend(every[:, :, 9:10], every[:, :, 9:10])
    assert [n for n in range(11) if cache.can_trim(n)] == [9, 10]
    cache.offset = 0
    cache.extend(every[:, :, :3], every[:, :, :3])
    assert all(cache.can_trim(n) for n in range(4))


CONFIG = GPTConfig(
    arch="modern",
    sequence_len=512,
    n_layer=3,
    n_head=2,
    n_kv_head=1,
    n_embd=32,
    vocab_size=11,
    window_pattern="SL",
)


def test_a_cache_for_every_layer() -> None:
    cache = Cache(CONFIG)
    assert [type(layer) for layer in cache.layers] == [WindowCache, KVCache, KVCache]
    GPT(CONFIG)(mx.array([[1, 2, 3], [4, 5, 6]]), cache)
    assert [layer.offset for layer in cache.layers] == [3, 3, 3]
    assert cache.offset == 3


def test_the_tokens_before() -> None:
    cache = Cache(CONFIG)
    model = GPT(CONFIG)
    assert cache.read(mx.array([[1, 2]])) is None
    cache = Cache(CONFIG)
    for piece in ([[1, 2, 3]], [[4]], [[5, 6]]):
        model(mx.array(piece), cache)
    for length, before in ((5, 5), (4, 4), (2, 2)):
        cache.trim(length)
        assert cache.offset == length
        model(mx.array([[9]]), cache)
        cache.trim(length)
        assert cache.read(mx.array([[9]])).tolist() == [[before]]
        cache.trim(length)
    cache.trim(0)
    assert cache.read(mx.array([[9]])) is None


def test_where_a_window_has_moved_past_everything_is_forgotten() -> None:
    cache, model = Cache(CONFIG), GPT(CONFIG)
    model(mx.zeros((1, 200), mx.int32), cache)
    cache.trim(199)
    assert cache.offset == 199
    cache.trim(150)
    assert [layer.offset for layer in cache.layers] == [0, 0, 0]
    assert cache.read(mx.array([[9]])) is None


@pytest.mark.parametrize("length", [-1, 4])
def test_trimming_to_what_is_not_there_is_refused(length: int) -> None:
    cache = Cache(CONFIG)
    GPT(CONFIG)(mx.array([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match=f"3 positions to {length}"):
        cache.trim(length)
