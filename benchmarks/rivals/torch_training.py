"""Training steps of the competitors, as nanochat takes them, on torch's fast parts.

Fused AdamW, Muon on stacked matrices (`torch_muon`), torch.compile where asked. Float32, but on
CUDA, as nanochat has it there, in bfloat16: activations, embeddings, rotary tables and Muon's
matrix products. The classic one (commit dfc8833) computes under autocast, the modern one (92d63d4)
casts its weights.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mlxchat.errors import MlxchatError
from mlxchat.model.config import Architecture
from rivals import torch_modern
from rivals.torch_muon import Muon, NorMuon
from rivals.torch_parts import Network, Rotations

GRAD_CLIP: dict[Architecture, float | None] = {"classic": 1.0, "modern": None}
COMPILERS = ("g++", "clang++", "c++")


class Optimizer(Protocol):
    """What `Trainer` needs of an optimizer."""

    def step(self) -> object:
        """Update the parameters by their gradients."""


def place_for_training(
    model: Network, device: torch.device, dtype: torch.dtype, compiled: bool
) -> None:
    """Move the model, with embeddings, rotary tables and masks in the dtype of activations.

    If it is to be compiled, windows are seen through by the fastest that torch has on the device.
    """
    model.to(device)
    for part in model.modules():
        if isinstance(part, nn.Embedding | Rotations | torch_modern.SeeMasked):
            part.to(dtype)
    if isinstance(model, torch_modern.GPT) and compiled and device.type == "cuda":
        model.fuse_windows(device)


def nanochats_optimizers(model: Network, dtype: torch.dtype, compiled: bool) -> list[Optimizer]:
    """AdamW and, for the blocks, Muon, with nanochat's numbers and no schedule.

    ``dtype`` is that of Muon's matrix products.
    """
    blocks = list(model.blocks.parameters())
    if isinstance(model, torch_modern.GPT):
        return [_adamw(modern_groups(model)), NorMuon(blocks, dtype, compiled)]
    return [_adamw(classic_groups(model)), Muon(blocks, dtype, compiled)]


def classic_groups(model: Network) -> list[dict[str, Any]]:
    """The parameters that AdamW updates, in groups."""
    scale = _width_scale(model)
    return [
        _group([model.lm_head.weight], 0.004 * scale, (0.8, 0.95), 0.0),
        _group([model.wte.weight], 0.2 * scale, (0.8, 0.95), 0.0),
    ]


def modern_groups(model: torch_modern.GPT) -> list[dict[str, Any]]:
    """The same of the modern network, with the rates of nanochat's batch of 2**19 tokens."""
    scale = _width_scale(model)
    smear = [model.smear_gate.weight, model.smear_lambda, model.backout_lambda]
    return [
        _group([model.lm_head.weight], 0.008 * scale, (0.8, 0.96), 0.01),
        _group([model.wte.weight], 0.3 * scale, (0.8, 0.995), 0.001),
        _group(list(model.value_embeds.parameters()), 0.15 * scale, (0.8, 0.995), 0.01),
        _group([model.resid_lambdas], 0.005, (0.8, 0.95), 0.05),
        _group([model.x0_lambdas], 0.5, (0.96, 0.95), 0.0),
        _group(smear, 0.2, (0.8, 0.95), 0.0),
    ]


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, eps=1e-10, fused=True)


def _width_scale(model: Network) -> float:
    return float((model.config.n_embd / 768) ** -0.5)


def _group(
    params: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float
) -> dict[str, Any]:
    return {"params": params, "lr": lr, "betas": betas, "weight_decay": weight_decay}


class Trainer:
    """Whole training steps of a model whose call on ids and targets is its loss.

    Args:
        dtype: of activations.

    Raises:
        MlxchatError: torch.compile would find no C++ compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        arch: Architecture,
        dtype: torch.dtype,
        compiled: bool,
    ) -> None:
        if compiled:
            require_compiler()
        self.model, self.optimizers, self.grad_clip = model, optimizers, GRAD_CLIP[arch]
        self.loss = torch.compile(model, dynamic=False) if compiled else model
        device = next(model.parameters()).device.type
        half = arch == "classic" and dtype == torch.bfloat16
        self.autocast = torch.autocast(device, dtype) if half else nullcontext()

    def gradients(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward; returns the loss, which is left on the device."""
        with self.autocast:
            loss = self.loss(ids, targets)
        loss.backward()
        return cast(Tensor, loss.detach())

    def update(self) -> None:
        """Step by the gradients, and forget them."""
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def step(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Forward, backward, joint clipping, update; returns the loss before it."""
        loss = self.gradients(ids, targets)
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.update()
        return loss


def require_compiler() -> None:
    """Raise MlxchatError where torch.compile has no C++ compiler."""
    candidates = [*filter(None, [os.environ.get("CXX")]), *COMPILERS]
    if not any(map(shutil.which, candidates)):
        raise MlxchatError(
            f"torch.compile needs a C++ compiler; none of {', '.join(candidates)} is here.",
            "Install one (Debian: apt-get install g++; macOS: xcode-select --install), "
            "or choose --programs without torch-compile.",
        )
