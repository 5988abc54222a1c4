import pytest

from mlxchat.engine.cache import Cache, LayerCache
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx


def draw(batch: int, positions: int, seed: int) -> tuple[mx.array, mx.array]:
    keys, values = mx.random.normal((2, batch, 3, positions, 4), key=mx.random.key(seed))
    return keys, values


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "pieces", [[5, 1, 1, 30, 1, 1], [1] * 30, [3, 1, 1, 9, 1, 20, 1], [8, 1, 8, 1], [40, 1, 1, 40]]
)
@pytest.mark.parametrize("window", [8, 1000])
def test_shows_what_can_be_seen_and_holds_no_more(
    batch: int, pieces: list[int], window: int
) -> None:
    cache = LayerCache(window)
    every, _ = draw(batch, sum(pieces), 0)
    end = 0
    for T in pieces:
        start, end = end, end + T
        keys, values, hidden = cache.extend(every[:, :, start:end], -every[:, :, start:end])
        assert mx.array_equal(keys, every[:, :, max(0, start - window) : end])
        assert mx.array_equal(values, -keys)
        assert hidden is None
        assert cache.offset == end
        assert mx.array_equal(cache.held[0], every[:, :, max(0, end - window) : end])


def test_earlier_arrays_survive_later_ones() -> None:
    cache = LayerCache(1000)
    keys, values = draw(1, 4, 0)
    shown, _, _ = cache.extend(keys, values)
    cache.trim(0)
    cache.extend(*draw(1, 4, 1))
    assert mx.array_equal(shown, keys)


@pytest.mark.parametrize("length", [0, 1, 9])
def test_a_forgotten_tail_is_replaced(length: int) -> None:
    cache = LayerCache(1000)
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

    cache = LayerCache(1000)
    cache.extend(*draw(1, 5, 0))
    monkeypatch.setattr(mx, "concatenate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.extend(*draw(1, 2, 1))
    assert cache.offset == cache.held[0].shape[2] == 5


def test_keeps_the_dtype_of_the_keys() -> None:
    keys, _, _ = LayerCache(8).extend(*(x.astype(mx.bfloat16) for x in draw(1, 3, 0)))
    assert keys.dtype == mx.bfloat16


@pytest.mark.parametrize(("read", "smallest"), [(5, 0), (8, 0), (9, 9), (30, 30)])
def test_a_window_can_be_trimmed_as_far_as_it_holds_keys(read: int, smallest: int) -> None:
    cache = LayerCache(8)
    every, _ = draw(1, 31, 0)
    cache.extend(every[:, :, :read], every[:, :, :read])
    assert [n for n in range(-1, read + 2) if cache.can_trim(n)] == list(range(smallest, read + 1))
    cache.trim(smallest)
    shown, _, _ = cache.extend(every[:, :, smallest : smallest + 1], every[:, :, :1])
    assert mx.array_equal(shown, every[:, :, max(0, smallest - 8) : smallest + 1])


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
    cache = Cache(CONFIG)
    GPT(CONFIG)(mx.array([[1, 2, 3], [4, 5, 6]]), cache)
    assert [layer.offset for layer in cache.layers] == [3, 3, 3]
    assert cache.offset == 3


def test_it_remembers_the_token_before_each_position() -> None:
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
    cache.trim(200)
    assert cache.offset == 200
    cache.trim(199)
    assert [layer.offset for layer in cache.layers] == [0, 0, 0]
    assert cache.read(mx.array([[9]])) is None


@pytest.mark.parametrize("length", [-1, 4])
def test_trimming_to_what_is_not_there_is_refused(length: int) -> None:
    cache = Cache(CONFIG)
    GPT(CONFIG)(mx.array([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match=f"3 positions to {length}"):
        cache.trim(length)


def test_what_was_read_elsewhere_is_taken_in() -> None:
    model, cache, elsewhere = GPT(CONFIG), Cache(CONFIG), Cache(CONFIG)
    model(mx.array([[1, 2, 3, 4, 5]]), elsewhere)
    model(mx.array([[1, 2, 3, 6, 7]]), cache)  # with some BLAS, three alone are rounded otherwise
    cache.trim(3)
    held = [layer.held for layer in elsewhere.layers]
    cache.append(mx.array([[4, 5]]), [(keys[:, :, 3:], values[:, :, 3:]) for keys, values in held])
    assert cache.offset == 5
    assert cache.latest is not None
    assert cache.latest.tolist() == [[5]]
    for layer, other in zip(cache.layers, elsewhere.layers, strict=True):
        assert mx.array_equal(layer.held[0], other.held[0])
