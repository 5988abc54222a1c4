"""nanochat's classic GPT in torch, and its decoding: the competitor.

The formulas are those of nanochat's commit dfc8833 (October 2025); `golden` shows that the numbers
are too. `torch_training` trains it, `torch_decoding` compiles its decoding.
"""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlxchat.model.config import GPTConfig
from rivals.torch_parts import MLP, Attention, Network, Rotation, mean_loss, norm


class LayerCache:
    """Keys and values of a layer, in buffers for all positions that there will be."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.offset = keys, values, 0  # (1, H, S, D)

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (1, H, T, D) keys and values; returns views of all held."""
        start, end = self.offset, self.offset + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class CausalAttention(Attention):
    """Causal self-attention; the cache, where there is one, is empty or one token is read."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.grouped = config.n_kv_head < config.n_head

    def forward(self, x: Tensor, turn: Rotation, cache: LayerCache | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = (heads.transpose(1, 2) for heads in self.project(x, turn))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = functional.scaled_dot_product_attention(
            q, k, v, is_causal=q.shape[2] > 1, enable_gqa=self.grouped
        )
        return self.output(y)


class Block(nn.Module):
    """Attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn = CausalAttention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn: Rotation, cache: LayerCache | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(norm(x), turn, cache)
        return cast(Tensor, x + self.mlp(norm(x)))


class GPT(Network):
    """The network, with nanochat's names and initial parameters, on the CPU in float32."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, nn.ModuleList(Block(config) for _ in range(config.n_layer)))
        self._initialise()

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """The mean loss where ``targets`` are not -1; without targets logits, (B, T, V) float32."""
        layers: Sequence[LayerCache | None] = cache or [None] * self.config.n_layer
        start = cache[0].offset if cache else 0
        turn = self.rotations(slice(start, start + ids.shape[1]))
        x = norm(self.wte(ids))
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, turn, layer)
        logits = self.logits(x)
        return logits if targets is None else mean_loss(logits, targets)

    def logits(self, x: Tensor) -> Tensor:
        """Map the stream after the last block, (B, T, C), to logits, (B, T, V) float32."""
        cap = self.config.softcap
        return (cap * torch.tanh(self.lm_head(norm(x)) / cap)).float()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if name == "transformer.wte.weight":
                weight.normal_()
            elif name == "lm_head.weight" or name.endswith("c_proj.weight"):
                weight.zero_()
            else:
                fan_out, fan_in = weight.shape
                weight.normal_(std=min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in))


@torch.inference_mode()
def continue_greedily(model: GPT, ids: Sequence[int], tokens: int) -> Iterator[int]:
    """The likeliest tokens after ``ids``, one after another, with a key-value cache.

    In the dtype of the model's parameters.
    """
    config, weight = model.config, model.lm_head.weight
    shape = (2, 1, config.n_kv_head, config.sequence_len, config.head_dim)
    cache = [LayerCache(*weight.new_zeros(shape)) for _ in model.blocks]
    following = torch.tensor([list(ids)], device=weight.device)
    for _ in range(tokens):
        following = model(following, cache=cache)[:, -1:].argmax(dim=-1)  # (1, 1)
        yield int(following)
