"""Bits per byte against a sum by hand, and the table of peaks."""

import math

import numpy as np
import pytest

from mlxchat.data.loader import Batch, LoaderState
from mlxchat.errors import MlxchatError
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.runtime import mx, peak_flops
from mlxchat.telemetry.events import Evaluated
from mlxchat.tokenizer.bpe import Tokenizer

TOKENIZER = Tokenizer.train(["an example of a text, an example of another"] * 50, 280)


def batch(text: str) -> Batch:
    ids = np.array([[TOKENIZER.bos, *TOKENIZER.encode(text), TOKENIZER.bos]], np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], LoaderState())


def nats(ids: mx.array, targets: mx.array) -> mx.array:
    """Made-up losses that tell tokens apart."""
    return targets.astype(mx.float32) / 100


def evaluated(*texts: str, limit: int = 10) -> Evaluated:
    *_, last = bits_per_byte(nats, map(batch, texts), limit, TOKENIZER)
    assert isinstance(last, Evaluated)
    return last


def test_summed_nats_over_summed_bytes() -> None:
    texts = ["an example", "of another text — naïve"]
    tokens = [token for text in texts for token in TOKENIZER.encode(text)]
    total_bytes = sum(len(text.encode()) for text in texts)
    result = evaluated(*texts)
    expected = sum(tokens) / 100 / (math.log(2) * total_bytes)
    assert result.bits_per_byte == pytest.approx(expected, rel=1e-6)
    special = 2 * TOKENIZER.bos / 100  # counts in the loss, not in the bits
    assert result.tokens == len(tokens) + 2
    assert result.loss == pytest.approx((sum(tokens) / 100 + special) / result.tokens, rel=1e-6)


def test_no_more_batches_than_asked_for() -> None:
    assert evaluated("an example", "another", limit=1).tokens == evaluated("an example").tokens


def test_too_little_text_for_a_row_is_refused() -> None:
    with pytest.raises(MlxchatError, match="does not fill a single row"):
        list(bits_per_byte(nats, [], 3, TOKENIZER))


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("Apple M3", 4.1e12),
        ("Apple M3 Pro", 7.4e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Apple M5 Ultra", 45.6e12),
        ("Apple M6", None),  # not on record
        ("Apple M4 Ultra", None),  # not the base chip of that name
        ("Apple M5 Something", None),
        ("Apple M30", None),
        ("Apple Paravirtual device", None),
        ("", None),
        ("AMD EPYC, 2 cores", None),
    ],
)
def test_the_peak_of_a_chip_is_found_by_its_name(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_ignored_tokens_do_not_count() -> None:
    whole = batch("an example of another")
    targets = whole.targets.copy()
    targets[:, ::2] = -1
    kept = targets[targets >= 0]
    *_, result = bits_per_byte(
        lambda ids, y: nats(ids, y) * (y >= 0),
        [Batch(whole.ids, targets, whole.state)],
        1,
        TOKENIZER,
    )
    assert isinstance(result, Evaluated)
    lengths = np.array(TOKENIZER.byte_lengths())[kept]
    assert result.tokens == len(kept)
    assert result.loss == pytest.approx(kept.sum() / 100 / len(kept), rel=1e-6)
    spelled = kept[lengths > 0].sum() / 100
    assert result.bits_per_byte == pytest.approx(spelled / (math.log(2) * lengths.sum()), rel=1e-6)
