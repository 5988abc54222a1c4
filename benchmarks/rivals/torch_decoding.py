"""Greedy decoding with torch.compile: the classic model's next token as one graph of kernels.

Everything that a token needs lies in buffers that never move: the latest token, its position, keys
and values. So the compiled step takes no arguments, and on CUDA it is replayed as a CUDA graph
(mode "reduce-overhead").
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rivals.torch_classic import GPT, Block, LayerCache
from rivals.torch_parts import norm
from rivals.torch_training import require_compiler

MULTIPLE = 64  # to which the cache is rounded up


class Buffers(nn.Module):
    """Keys and values of a layer, (1, H, S, D)."""

    keys: Tensor
    values: Tensor

    def __init__(self, model: GPT, positions: int) -> None:
        super().__init__()
        config = model.config
        shape = (1, config.n_kv_head, positions, config.head_dim)
        self.register_buffer("keys", model.lm_head.weight.new_zeros(shape), persistent=False)
        self.register_buffer("values", model.lm_head.weight.new_zeros(shape), persistent=False)


class OneToken(nn.Module):
    """Reads the latest token and leaves the likeliest next one in its place."""

    token: Tensor  # (1, 1)
    position: Tensor  # (1,), of the latest token
    positions: Tensor  # (S,), all

    def __init__(self, model: GPT, positions: int) -> None:
        super().__init__()
        self.model, device = model, model.lm_head.weight.device
        self.held = nn.ModuleList(Buffers(model, positions) for _ in model.blocks)
        for name, initial in {
            "token": torch.zeros((1, 1), dtype=torch.int64),
            "position": torch.zeros(1, dtype=torch.int64),
            "positions": torch.arange(positions),
        }.items():
            self.register_buffer(name, initial.to(device), persistent=False)

    @property
    def layers(self) -> Sequence[Buffers]:
        """Keys and values of the layers."""
        return cast(Sequence[Buffers], self.held)

    def forward(self) -> Tensor:
        """The next token, (1, 1)."""
        model = self.model
        turn, seen = model.rotations(self.position), self.positions <= self.position
        x = norm(model.wte(self.token))
        blocks = cast(Sequence[Block], model.blocks)
        for block, layer in zip(blocks, self.layers, strict=True):
            new = block.attn.project(norm(x), turn)
            q, k, v = (heads.transpose(1, 2) for heads in new)  # (1, H, 1, D)
            layer.keys.index_copy_(2, self.position, k)
            layer.values.index_copy_(2, self.position, v)
            y = functional.scaled_dot_product_attention(
                q, layer.keys, layer.values, seen[None], enable_gqa=block.attn.grouped
            )
            x = x + block.attn.output(y)
            x = x + block.mlp(norm(x))
        self.token.copy_(model.logits(x).argmax(dim=-1))
        self.position.add_(1)
        return self.token.clone()


class Decoder:
    """Continues prompts by `OneToken`, compiled or not.

    Args:
        positions: the most that a prompt and its continuation have together.

    Raises:
        MlxchatError: torch.compile would find no C++ compiler.
    """

    def __init__(self, model: GPT, positions: int, compiled: bool) -> None:
        if compiled:
            require_compiler()
        self.model = model
        self.state = OneToken(model, -(-positions // MULTIPLE) * MULTIPLE)
        self.compiled = compiled
        self.step = cast(
            Callable[[], Tensor],
            torch.compile(self.state, mode="reduce-overhead", fullgraph=True, dynamic=False)
            if compiled
            else self.state,
        )

    @torch.no_grad()
    def continue_greedily(self, ids: Sequence[int], tokens: int) -> Iterator[int]:
        """The likeliest tokens after ``ids``; each is read while the next one is computed."""
        latest = self._read(ids)
        for _ in range(tokens - 1):
            following = self._next()
            yield latest()
            latest = following
        yield latest()

    def _read(self, ids: Sequence[int]) -> Callable[[], int]:
        state = self.state
        cache = [LayerCache(layer.keys, layer.values) for layer in state.layers]
        prompt = torch.tensor([list(ids)], device=state.token.device)
        state.token.copy_(self.model(prompt, cache=cache)[:, -1:].argmax(dim=-1))
        state.position.fill_(len(ids))
        return _on_its_way(state.token)

    def _next(self) -> Callable[[], int]:
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        return _on_its_way(self.step())


def _on_its_way(token: Tensor) -> Callable[[], int]:
    """Start to copy a token to the host; the function waits for it, but not for what comes after.

    The token's memory may be written again afterwards.
    """
    if token.device.type != "cuda":
        kept = token.clone()
        return lambda: int(kept)
    copy = torch.empty(token.shape, dtype=token.dtype, pin_memory=True)
    copy.copy_(token, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> int:
        copied.synchronize()
        return int(copy)

    return wait
