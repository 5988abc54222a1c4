"""Sequences longer than the context, where nanochat's windows and rotary positions go on.

The numbers are nanochat's own: the weights of golden/classic and golden/modern in a network whose
context is 40, computed with PyTorch in float32. The short windows of the modern one are 128 there,
longer than its long one.
"""

import pytest
from support.cases import Case, golden

from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import continue_greedily
from mlxchat.interop.exporters.mlx_lm import _network
from mlxchat.model.config import ERAS, NO_WINDOW, Era, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.size import flops_per_token
from mlxchat.runtime import mx

CONTEXT = 40
SHOWN = slice(19, None, 20)  # positions whose logits are recorded, of 300


class Beyond:
    """A network with a short context, and what nanochat computes beyond it."""

    def __init__(self, case: Case) -> None:
        self.config = case.config.model_copy(update={"sequence_len": CONTEXT})
        self.model = GPT(self.config)
        self.model.load_weights(list(case.load("weights").items()))
        recorded = case.load("beyond")
        self.ids, self.logits = recorded["ids"], recorded["logits"]
        self.prompts = [case.facts["greedy_prompt"], case.facts["greedy_prompt"][:3]]
        self.greedy = recorded["greedy"][:, :60].tolist()


@pytest.fixture
def beyond(case: Case) -> Beyond:
    return Beyond(case)


def test_logits_of_a_full_pass_are_nanochats(beyond: Beyond) -> None:
    assert mx.allclose(beyond.model(beyond.ids)[:, SHOWN], beyond.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ready", [False, True], ids=["as trained", "prepared"])
def test_logits_with_a_cache_are_nanochats(beyond: Beyond, ready: bool) -> None:
    """The prompt is read in pieces, the last 60 tokens one after another."""
    model, ids, cache = beyond.model, beyond.ids, KVCache(beyond.config)
    if ready:
        model.prepare_for_inference()
    T = ids.shape[1]
    starts = [0, 37, 41, 130, *range(T - 60, T)]
    ends = [*starts[1:], T]
    pieces = [model(ids[:, a:b], cache) for a, b in zip(starts, ends, strict=True)]
    logits = mx.concatenate(pieces, axis=1)
    assert mx.allclose(logits[:, SHOWN], beyond.logits, rtol=0, atol=1e-4)


def test_decoding_together_writes_what_nanochat_writes(beyond: Beyond) -> None:
    written = continue_greedily(beyond.model, beyond.prompts, frozenset(), len(beyond.greedy[0]))
    assert written == beyond.greedy


def test_the_first_networks_have_no_windows() -> None:
    config = GPTConfig(n_layer=3, sequence_len=64)
    assert config.windows == (NO_WINDOW,) * 3


@pytest.mark.parametrize("context", [1, 64, 128, 512, 513, 2048])
@pytest.mark.parametrize("era", [era for era in ERAS.values() if era.short_window])
def test_windows_are_computed_as_in_nanochat(era: Era, context: int) -> None:
    short = {  # `_compute_window_sizes` in gpt.py: of fbc1484, 6ed7d1d and 92d63d4
        "gates_12": -(-context // 3 // 128) * 128,
        "modern": -(-context // 4 // 128) * 128,
    }.get(era.name, context // 2)
    config = GPTConfig(
        arch=era.arch, era=era.name, sequence_len=context, n_layer=4, window_pattern="SSSL"
    )
    assert config.windows == (short, short, short, context)


def test_windows_beyond_the_context_cost_nothing_in_training() -> None:
    modern = golden("modern/case.json")["config"] | {"arch": "modern", "sequence_len": 64}
    short, long = (GPTConfig(**modern | {"window_pattern": p}) for p in ("SSSL", "L"))
    assert flops_per_token(short) == flops_per_token(long)


def test_exports_state_the_windows(case: Case) -> None:
    stated = _network(case.config.model_copy(update={"sequence_len": CONTEXT}))["windows"]
    assert stated == ([None] * 4 if case.config.era == "classic" else [128, 128, 128, CONTEXT])
