"""Reinforcement learning as nanochat's own code does it on two small models of random weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxchat.data.loader import Batch, LoaderState
from mlxchat.engine.rollout import SampledAnswer
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.train.policy_gradient import PaddedRows, advantages, padded_rows, row_weights
from support.cases import GOLDEN, golden


@dataclass(frozen=True)
class RlExample:
    """A question with nanochat's answers, and what its code made of them."""

    facts: dict[str, Any]
    padding: int

    @property
    def answers(self) -> list[SampledAnswer]:
        start = len(self.facts["prompt"])
        pairs = zip(self.facts["sequences"], self.facts["masks"], strict=True)
        return [SampledAnswer(ids[start:], [not b for b in mask[start:]]) for ids, mask in pairs]

    @property
    def rewards(self) -> np.ndarray:
        return np.array([self.facts["rewards"]], np.float32)

    @property
    def rows(self) -> PaddedRows:
        answers = self.answers
        return padded_rows([self.facts["prompt"]] * len(answers), answers, self.padding)


class RlCase:
    def __init__(self, arch: str) -> None:
        self.arch, self.facts = arch, golden(f"rl/{arch}.json")
        self.config = GPTConfig(arch=arch, **self.facts["config"])
        self.special: dict[str, int] = self.facts["special_tokens"]
        padding = self.special["<|assistant_end|>"]
        self.examples = [RlExample(facts, padding) for facts in self.facts["examples"]]

    def load(self, name: str) -> dict[str, mx.array]:
        return mx.load(str(GOLDEN / "rl" / f"{self.arch}_{name}.safetensors"))

    def model(self) -> GPT:
        model = GPT(self.config)
        model.load_weights(list(self.load("weights").items()))
        return model

    def batches(self) -> Iterator[Batch]:
        """The passes of all steps."""
        size, questions = self.facts["device_batch_size"], self.facts["examples_per_step"]
        for example in self.examples:
            rows = example.rows
            drawn = (rows.targets >= 0).sum(axis=1)[None]
            weights = row_weights(advantages(example.rewards), drawn, size, questions)
            for first in range(0, len(rows.ids), size):
                part = slice(first, first + size)
                yield Batch(rows.ids[part], rows.targets[part], LoaderState(), weights[part])
