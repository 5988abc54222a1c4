"""Answers that are drawn to be learnt from: what nanochat's engine makes of the same tokens."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from support.cases import golden
from support.models import network

from mlxchat.config.inference import Sampling
from mlxchat.engine.generate import generate_batch
from mlxchat.engine.policy import Policy
from mlxchat.engine.rollout import answer_keys, sample_answers
from mlxchat.engine.sampling import make_row_sampler
from mlxchat.engine.tools import ToolUse
from mlxchat.model.adapter import LoraConfig
from mlxchat.model.config import Architecture
from mlxchat.model.lora import add_adapter
from mlxchat.runtime import mx

STOP = frozenset({0})


class Characters:
    """The tokenizer of nanochat's numbers: ids are indices of characters."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts, self._characters = facts, facts["engine"]["characters"]

    def special(self, name: str) -> int:
        return int(self._facts["special_tokens"][name])

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self._facts["special_tokens"].values() else b"x"

    def encode(self, text: str) -> list[int]:
        unknown = self._facts["engine"]["unknown"]
        return [self._characters.index(c) if c in self._characters else unknown for c in text]

    def decode(self, ids: list[int]) -> str:
        known = self._characters
        return "".join(known[id] if id < len(known) else "?" for id in ids)


def prescribed(logits: mx.array, keys: mx.array) -> tuple[mx.array, mx.array]:
    """Take the first of the tokens that the rows' keys consist of."""
    return keys[:, 0], keys[:, 1:]


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_answers_are_what_nanochats_engine_makes_of_the_tokens_drawn(arch: str) -> None:
    facts = golden(f"rl/{arch}.json")
    engine, special = facts["engine"], facts["special_tokens"]
    stop, prompt = special["<|assistant_end|>"], engine["prompt"]
    rows = [row["sampled"] for row in engine["rows"]]
    length = max(map(len, rows)) + 2
    keys = mx.array([row + [stop] * (length - len(row)) for row in rows])
    answers = sample_answers(
        network().model,
        [prompt] * len(rows),
        prescribed,
        keys,
        stop=frozenset({stop, special["<|bos|>"]}),
        max_tokens=engine["max_tokens"],
        tools=partial(ToolUse, Characters(facts)),
    )
    for answer, row in zip(answers, engine["rows"], strict=True):
        assert prompt + answer.ids == row["sequence"]
        masks = [0] * len(prompt) + [int(not forced) for forced in answer.forced]
        assert masks == row["mask"]


def test_an_answer_depends_on_its_own_key_only() -> None:
    model = network().model
    prompts = [[5, 6, 7], [8], [5, 6, 7], [9, 3]]
    keys = np.concatenate([answer_keys(7, number, answers=1) for number in range(4)])
    sample = make_row_sampler(Sampling(temperature=1.0, top_k=20), model.config.vocab_size)
    draw = partial(sample_answers, model, sample=sample, stop=frozenset(range(20)), max_tokens=30)
    together = draw(prompts, keys=mx.array(keys))
    assert len({len(answer.ids) for answer in together}) > 1  # some ended before others
    for number, prompt in enumerate(prompts):
        [alone] = draw([prompt], keys=mx.array(keys[number : number + 1]))
        assert alone == together[number]


def test_a_batch_goes_on_with_the_rows_that_have_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = mx.array([[4, 0, 0, 0, 0, 0, 0], [4, 4, 4, 4, 4, 0, 0], [4, 4, 0, 0, 0, 0, 0]])
    model, sizes = network().model, list[int]()
    read = type(model).__call__

    def counted(self: object, ids: mx.array, cache: object = None) -> mx.array:
        sizes.append(len(ids))
        return read(model, ids, cache)

    monkeypatch.setattr(type(model), "__call__", counted)
    steps = generate_batch(model, [[1]] * 3, prescribed, key=keys, stop=STOP, max_tokens=9)
    assert list(steps) == [[4, 4, 4], [None, 4, 4], *[[None, 4, None]] * 3]
    assert sizes == [3, 3, 3, 1, 1, 1]


def test_what_interrupts_the_drawing_ends_it() -> None:
    def interrupt(ended: int) -> None:
        raise KeyboardInterrupt

    keys = mx.array([[4] * 9])
    with pytest.raises(KeyboardInterrupt):
        sample_answers(
            network().model, [[1]], prescribed, keys, stop=STOP, max_tokens=3, watch=interrupt
        )


@pytest.mark.slow  # MLX compiles C++ for it here
@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_a_copy_generates_with_the_weights_of_the_moment(arch: Architecture, adapted: bool) -> None:
    model, other = network(64, arch).model, network(64, arch, seed=2).model
    for each in (model, other) if adapted else ():
        add_adapter(each, LoraConfig(rank=2, dora=True))
        arrays = each.named_trainable().items()
        each.load_weights([(name, array + 0.1) for name, array in arrays], strict=False)
    policy = Policy(model, copied=True)
    sample = make_row_sampler(Sampling(temperature=1.0), model.config.vocab_size)
    keys = mx.array(np.concatenate([answer_keys(n, answers=1) for n in range(3)]))
    draw = partial(
        sample_answers,
        prompts=[[5, 6], [5, 6], [7]],
        sample=sample,
        keys=keys,
        stop=frozenset(),
        max_tokens=6,
    )
    for weights in (model.named_parameters(), other.named_parameters()):
        model.load_weights(list(weights.items()))
        copy = policy.current()
        assert copy is not model and copy.decode_step is not None
        assert draw(copy) == draw(model)
