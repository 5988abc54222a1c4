import pytest

from mlxchat.engine.cache import KVCache, KVLayer
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.size import CACHE_STEP
from mlxchat.runtime import mx


def draw(batch: int, positions: int, seed: int) -> tuple[mx.array, mx.array]:
    keys, values = mx.random.normal((2, batch, 3, positions, 4), key=mx.random.key(seed))
    return keys, values


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "pieces", [[5, 1, 1, 30, 1, 1], [1] * 30, [3, 1, 1, 9, 1, 20, 1], [8, 1, 8, 1], [40, 1, 1, 40]]
)
@pytest.mark.parametrize("window", [8, 1000])
def test_a_layer_returns_what_new_positions_can_see(
    batch: int, pieces: list[int], window: int
) -> None:
    cache = KVLayer(window)
    every, _ = draw(batch, sum(pieces), 0)
    end = 0
    for T in pieces:
        start, end = end, end + T
        keys, values, hidden = cache.extend(every[:, :, start:end], -every[:, :, start:end])
        assert mx.array_equal(keys, every[:, :, max(0, start - window) : end])
        assert mx.array_equal(values, -keys)
        assert hidden is None
        assert cache.offset == end
        assert mx.array_equal(cache.visible[0], every[:, :, max(0, end - window) : end])
        assert cache.visible[0].shape == cache.visible[1].shape


def test_earlier_arrays_survive_later_ones() -> None:
    cache = KVLayer(1000)
    keys, values = draw(1, 4, 0)
    shown, _, _ = cache.extend(keys, values)
    cache.trim(0)
    cache.extend(*draw(1, 4, 1))
    assert mx.array_equal(shown, keys)


@pytest.mark.parametrize("length", [0, 1, 9])
def test_a_forgotten_tail_is_replaced(length: int) -> None:
    cache = KVLayer(1000)
    keys, values = draw(1, 10, 0)
    cache.extend(keys, values)
    cache.trim(length)
    assert cache.offset == length
    more_keys, more_values = draw(1, 7, 1)
    shown, _, _ = cache.extend(more_keys, more_values)
    assert mx.array_equal(shown, mx.concatenate([keys[:, :, :length], more_keys], axis=2))


def test_an_interruption_leaves_it_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cache, (keys, values) = KVLayer(1000), draw(1, 5, 0)
    cache.extend(keys, values)
    monkeypatch.setattr(mx, "pad", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.extend(*draw(1, CACHE_STEP, 1))  # more than the buffers have room for
    assert cache.offset == 5
    assert mx.array_equal(cache.visible[0], keys)
    with pytest.raises(ValueError, match="shape"):  # between keys and values
        cache.extend(draw(1, 2, 1)[0], mx.zeros((7, 7, 2, 7)))
    assert cache.offset == 5
    assert mx.array_equal(cache.visible[0], keys)
    assert mx.array_equal(cache.visible[1], values)


def test_a_layer_keeps_the_dtype_of_the_keys() -> None:
    keys, _, _ = KVLayer(8).extend(*(x.astype(mx.bfloat16) for x in draw(1, 3, 0)))
    assert keys.dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("pieces", "smallest"),
    [
        ([5], 0),
        ([9], 0),  # one more than the window
        ([10], 9),
        ([30], 29),
        ([10, 1, 1, 20], 9),  # nothing is dropped before the buffers are full
        ([10, CACHE_STEP], 9),
        ([10, 200, 200], 209),
        ([1] * (CACHE_STEP + 1), CACHE_STEP - 1),
    ],
)
def test_a_window_can_be_trimmed_as_far_as_it_holds_keys(pieces: list[int], smallest: int) -> None:
    cache, read = KVLayer(8), sum(pieces)
    every, _ = draw(1, read + 1, 0)
    end = 0
    for T in pieces:
        start, end = end, end + T
        cache.extend(every[:, :, start:end], every[:, :, start:end])
    assert [n for n in range(-1, read + 2) if cache.can_trim(n)] == list(range(smallest, read + 1))
    cache.trim(smallest)
    assert cache.offset == smallest
    shown, _, _ = cache.extend(every[:, :, smallest : smallest + 1], every[:, :, :1])
    assert mx.array_equal(shown, every[:, :, max(0, smallest - 8) : smallest + 1])


def test_a_window_holds_little_more_than_it_can_see() -> None:
    cache = KVLayer(8)
    for T in [1000, *[1] * 600]:
        cache.extend(*draw(1, T, 0))
        assert sum(buffer.shape[2] for buffer in cache._buffers) == 2 * CACHE_STEP


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


def test_every_layer_has_a_cache() -> None:
    cache = KVCache(CONFIG)
    GPT(CONFIG)(mx.array([[1, 2, 3], [4, 5, 6]]), cache)
    assert [layer.offset for layer in cache.layers] == [3, 3, 3]
    assert cache.offset == 3


def test_a_cache_returns_the_id_before_new_ones() -> None:
    cache = KVCache(CONFIG)
    model = GPT(CONFIG)
    assert cache.record(mx.array([[1, 2]])) is None
    cache = KVCache(CONFIG)
    for piece in ([[1, 2, 3]], [[4]], [[5, 6]]):
        model(mx.array(piece), cache)
    for length, before in ((5, 5), (4, 4), (2, 2)):
        cache.trim(length)
        assert cache.offset == length
        model(mx.array([[9]]), cache)
        cache.trim(length)
        assert cache.record(mx.array([[9]])).tolist() == [[before]]
        cache.trim(length)
    cache.trim(0)
    assert cache.record(mx.array([[9]])) is None


def test_everything_is_forgotten_where_a_window_has_moved_past() -> None:
    cache, model = KVCache(CONFIG), GPT(CONFIG)
    model(mx.zeros((1, 200), mx.int32), cache)
    cache.trim(200)
    assert cache.offset == 200
    cache.trim(199)  # the last position can always be taken back
    assert cache.offset == 199
    cache.trim(198)
    assert [layer.offset for layer in cache.layers] == [0, 0, 0]
    assert cache.record(mx.array([[9]])) is None


@pytest.mark.parametrize("length", [-1, 4])
def test_trimming_to_a_length_that_was_not_read_is_refused(length: int) -> None:
    cache = KVCache(CONFIG)
    GPT(CONFIG)(mx.array([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match=f"3 positions to {length}"):
        cache.trim(length)
