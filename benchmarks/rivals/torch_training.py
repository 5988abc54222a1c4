"""Training steps of the competitor, as nanochat's commit dfc8833 takes them, on torch's fast parts.

Fused AdamW, Muon on stacked matrices, torch.compile where asked. Float32, but on CUDA, as nanochat
has it there: activations under bfloat16 autocast; embedding, rotary tables and Newton-Schulz in
bfloat16.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from mlxchat.errors import MlxchatError
from rivals.torch_classic import GPT, dtype_on

GRAD_CLIP = 1.0
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
COMPILERS = ("g++", "clang++", "c++")


class Optimizer(Protocol):
    """What `Trainer` needs of an optimizer."""

    def step(self) -> object:
        """Update the parameters by their gradients."""


def place_for_training(model: GPT, device: torch.device) -> None:
    """Move the model, with embedding and rotary tables in the device's dtype."""
    model.to(device)
    model.wte.to(dtype_on(device))
    model.cos, model.sin = model.cos.to(dtype_on(device)), model.sin.to(dtype_on(device))


def orthogonalise(G: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest orthogonal matrices of (N, R, C), roughly: five steps of quintic Newton-Schulz."""
    a, b, c = NEWTON_SCHULZ
    tall = G.shape[-2] > G.shape[-1]
    X: Tensor = G.mT if tall else G
    X = (X / (torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.mT if tall else X


class Muon:
    """Momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/), stacked by shape."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        orthogonal: Callable[[Tensor, torch.dtype], Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
    ) -> None:
        def shape(p: Tensor) -> tuple[int, ...]:
            return tuple(p.shape)

        self.stacks = [list(same) for _, same in groupby(sorted(parameters, key=shape), key=shape)]
        self.buffers = [torch.zeros_like(torch.stack(stack)) for stack in self.stacks]
        self.orthogonal, self.lr, self.momentum = orthogonal, lr, momentum

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients."""
        for stack, buffer in zip(self.stacks, self.buffers, strict=True):
            g = torch.stack([cast(Tensor, p.grad) for p in stack])
            buffer.lerp_(g, 1 - self.momentum)
            step = self.orthogonal(g.lerp_(buffer, self.momentum), dtype_on(g.device))
            scale = max(1.0, g.shape[-2] / g.shape[-1]) ** 0.5
            for p, change in zip(stack, step, strict=True):
                p.add_(change, alpha=-self.lr * scale)


def nanochats_optimizers(model: GPT, compiled: bool) -> list[Optimizer]:
    """AdamW for embedding and head, Muon for the blocks, with nanochat's numbers."""
    scale = (model.config.n_embd / 768) ** -0.5
    groups = [
        {"params": [model.lm_head.weight], "lr": 0.004 * scale},
        {"params": [model.wte.weight], "lr": 0.2 * scale},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    orthogonal = torch.compile(orthogonalise, dynamic=False) if compiled else orthogonalise
    return [adamw, Muon(list(model.blocks.parameters()), orthogonal)]


class Trainer:
    """Whole training steps of a model whose call on ids and targets is its loss.

    Raises:
        MlxchatError: torch.compile would find no C++ compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        device: torch.device,
        compiled: bool,
    ) -> None:
        if compiled:
            require_compiler()
        self.model, self.optimizers = model, optimizers
        self.loss = torch.compile(model, dynamic=False) if compiled else model
        half = dtype_on(device) == torch.bfloat16
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)

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
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
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
