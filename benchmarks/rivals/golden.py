"""Whether the competitor computes what nanochat computes: its numbers against the recorded ones.

In float32 on the CPU, as they were recorded.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from mlxchat.model.config import GPTConfig
from rivals.torch_classic import GPT, continue_greedily
from rivals.torch_training import Trainer, nanochats_optimizers

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden" / "classic"


class Difference(NamedTuple):
    """How far a quantity is from the recorded one."""

    quantity: str
    found: float
    tolerance: float

    @property
    def small(self) -> bool:
        """Within the tolerance (and not NaN)."""
        return self.found <= self.tolerance


def differences(compiled: bool) -> Iterator[Difference]:
    """Logits, losses, gradients, three optimizer steps, and a cached greedy continuation.

    Parameters and gradients: the largest over tensors, relative to each tensor's norm.
    """
    facts = json.loads((FOLDER / "case.json").read_text("utf-8"))
    io = _load("io")
    ids, targets = io["ids"].long(), io["targets"].long()
    model = GPT(GPTConfig(**facts["config"]))
    model.load_state_dict(_load("weights"))
    with torch.no_grad():
        yield Difference("logits", float((model(ids) - io["logits"]).abs().max()), 1e-4)
    prompt, expected = facts["greedy_prompt"], facts["greedy"]
    tokens = list(continue_greedily(model, prompt, len(expected)))
    wrong = sum(a != b for a, b in zip(tokens, expected, strict=True))
    yield Difference("tokens decoded with a cache", wrong, 0)
    cpu = torch.device("cpu")
    trainer = Trainer(model, nanochats_optimizers(model, compiled), cpu, compiled)
    for step, loss in enumerate(facts["train_losses"]):
        found = float(trainer.gradients(ids, targets))
        yield Difference(f"loss after step {step}", abs(found - loss), 1e-4)
        if step == 0:
            gradients = {name: cast(Tensor, p.grad) for name, p in model.named_parameters()}
            yield Difference("gradients", _largest(gradients, _load("grads")), 1e-4)
        trainer.update()
    with torch.no_grad():
        found = _largest(dict(model.named_parameters()), _load("weights_after_3_steps"))
        yield Difference("parameters after 3 steps", found, 1e-3)
        loss = float(model(ids, targets)) - facts["loss_after_3_steps"]
        yield Difference("loss after 3 steps", abs(loss), 1e-4)


def _largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its norm; all must be there."""
    each = [(found[name] - tensor).norm() / tensor.norm() for name, tensor in expected.items()]
    return float(torch.stack(each).max())


def _load(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")
