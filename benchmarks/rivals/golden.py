"""Compares the competitors' numbers with those that nanochat computed.

In float32, as they were recorded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from mlxchat.model.config import Architecture, GPTConfig
from rivals import torch_classic, torch_modern
from rivals.torch_decoding import Decoder
from rivals.torch_parts import Network
from rivals.torch_training import Trainer, nanochats_optimizers, place_for_training

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"


class Difference(NamedTuple):
    """How far a quantity is from the recorded one."""

    quantity: str
    found: float
    tolerance: float

    @property
    def small(self) -> bool:
        """Within the tolerance (and not NaN)."""
        return self.found <= self.tolerance


def differences(arch: Architecture, compiled: bool, device: str) -> Iterator[Difference]:
    """Logits, losses, gradients, three optimizer steps, and greedy continuations.

    Parameters and gradients: the largest over tensors, relative to each tensor's norm.
    """
    folder = GOLDEN / arch
    facts = json.loads((folder / "case.json").read_text("utf-8"))
    io = _load(folder, "io", device)
    ids, targets = io["ids"].long(), io["targets"].long()
    network = torch_classic.GPT if arch == "classic" else torch_modern.GPT
    model = network(GPTConfig(arch=arch, **facts["config"]))
    model.load_state_dict(_load(folder, "weights", device))
    model.to(device)
    with torch.no_grad():
        yield Difference("logits", float((model(ids) - io["logits"]).abs().max()), 1e-4)
    expected = facts["greedy"]
    for how, tokens in _continued(model, facts["greedy_prompt"], len(expected), compiled):
        wrong = sum(a != b for a, b in zip(tokens, expected, strict=True))
        yield Difference(f"tokens decoded {how}", wrong, 0)
    place_for_training(model, torch.device(device), torch.float32, compiled)
    optimizers = nanochats_optimizers(model, torch.float32, compiled)
    trainer = Trainer(model, optimizers, arch, torch.float32, compiled)
    for step, loss in enumerate(facts["train_losses"]):
        found = float(trainer.gradients(ids, targets))
        yield Difference(f"loss after step {step}", abs(found - loss), 1e-4)
        if step == 0:
            gradients = {name: cast(Tensor, p.grad) for name, p in model.named_parameters()}
            yield Difference("gradients", _largest(gradients, _load(folder, "grads", device)), 1e-4)
        trainer.update()
    with torch.no_grad():
        after = _load(folder, "weights_after_3_steps", device)
        found = _largest(dict(model.named_parameters()), after)
        yield Difference("parameters after 3 steps", found, 1e-3)
        loss = float(trainer.loss(ids, targets)) - facts["loss_after_3_steps"]
        yield Difference("loss after 3 steps", abs(loss), 1e-4)


def _continued(
    model: Network, prompt: Sequence[int], count: int, compiled: bool
) -> Iterator[tuple[str, list[int]]]:
    """Each way to continue a prompt, and its tokens."""
    if isinstance(model, torch_classic.GPT):
        yield "with a cache", list(torch_classic.continue_greedily(model, prompt, count))
        decoder = Decoder(model, len(prompt) + count, compiled)
        yield "with a cache of fixed size", list(decoder.continue_greedily(prompt, count))
        return
    ids = torch.tensor([list(prompt)], device=model.lm_head.weight.device)
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=-1)], dim=1)
    yield "without a cache", ids[0, len(prompt) :].tolist()


def _largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its norm; all must be there."""
    each = [(found[name] - tensor).norm() / tensor.norm() for name, tensor in expected.items()]
    return float(torch.stack(each).max())


def _load(folder: Path, name: str, device: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors", device=device)
