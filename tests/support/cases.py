"""nanochat's own numbers, and models that are compared with them."""

import json
from typing import Any

from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from support.places import TESTS

GOLDEN = TESTS / "golden"


def golden(name: str) -> Any:
    """The contents of a JSON file that nanochat's own code wrote."""
    return json.loads((GOLDEN / name).read_text("utf-8"))


class Case:
    """A model of nanochat's with what it computes."""

    def __init__(self, arch: str) -> None:
        self.facts = golden(f"{arch}/case.json")
        self.config = GPTConfig(arch=arch, **self.facts["config"])
        self.io = self.load("io")

    def load(self, name: str) -> dict[str, mx.array]:
        return mx.load(str(GOLDEN / self.config.arch / f"{name}.safetensors"))

    def model(self, dtype: mx.Dtype = mx.float32) -> GPT:
        model = GPT(self.config, dtype)
        model.load_weights(list(self.load("weights").items()))
        return model

    def loss(self, model: GPT) -> mx.array:
        return model.loss(self.io["ids"], self.io["targets"])


def relative(a: mx.array, b: mx.array) -> float:
    return float(mx.linalg.norm(a - b).item() / mx.linalg.norm(b).item())
