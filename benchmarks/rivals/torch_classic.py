"""nanochat's classic GPT in torch, and its decoding: the competitor.

The formulas are those of nanochat's commit dfc8833 (October 2025); `golden` shows that the numbers
are too. `torch_training` trains it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlxchat.model.config import GPTConfig

ROPE_BASE = 10_000.0
SOFTCAP = 15.0
Rotation = tuple[Tensor, Tensor]  # cosines and sines, (T, 1, D/2) each


def best_device() -> torch.device:
    """The fastest that torch has here."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def name_of(device: torch.device) -> str:
    """What to call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dtype_on(device: torch.device) -> torch.dtype:
    """Of activations, and of Newton-Schulz."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last axis, without weights."""
    return functional.rms_norm(x, (x.shape[-1],))


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turn (B, T, H, D) queries or keys by minus theta, dimension i with dimension i + D/2."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class LayerCache:
    """Keys and values of a layer, in buffers for all positions that there will be."""

    def __init__(self, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> None:
        shape = (2, 1, config.n_kv_head, config.sequence_len, config.head_dim)
        self.keys, self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.offset = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (1, H, T, D) keys and values; returns views of all held."""
        start, end = self.offset, self.offset + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Causal self-attention; the cache, where there is one, is empty or one token is read."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.n_kv_head < config.n_head
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, config.kv_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, config.kv_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, turn: Rotation, cache: LayerCache | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = norm(rotate(self.c_q(x).view(heads), turn)).transpose(1, 2)  # (B, H, T, D)
        k = norm(rotate(self.c_k(x).view(heads), turn)).transpose(1, 2)
        v = self.c_v(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = functional.scaled_dot_product_attention(
            q, k, v, is_causal=q.shape[2] > 1, enable_gqa=self.grouped
        )
        return cast(Tensor, self.c_proj(y.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two linear layers with a squared ReLU between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return cast(Tensor, self.c_proj(functional.relu(self.c_fc(x)).square()))


class Block(nn.Module):
    """Attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn: Rotation, cache: LayerCache | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(norm(x), turn, cache)
        return cast(Tensor, x + self.mlp(norm(x)))


class GPT(nn.Module):
    """The network, with nanochat's names and initial parameters, on the CPU in float32."""

    cos: Tensor  # (sequence_len, 1, D/2)
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        wte = nn.Embedding(config.vocab_size, config.n_embd)
        blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.transformer = nn.ModuleDict({"wte": wte, "h": blocks})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
        theta = torch.outer(torch.arange(config.sequence_len), ROPE_BASE**-exponents)[:, None]
        self.register_buffer("cos", theta.cos(), persistent=False)
        self.register_buffer("sin", theta.sin(), persistent=False)
        self._initialise()

    @property
    def wte(self) -> nn.Embedding:
        """The embedding of the tokens."""
        return cast(nn.Embedding, self.transformer["wte"])

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return cast(nn.ModuleList, self.transformer["h"])

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """The mean loss where ``targets`` are not -1; without targets logits, (B, T, V) float32."""
        layers: Sequence[LayerCache | None] = cache or [None] * self.config.n_layer
        start = cache[0].offset if cache else 0
        positions = slice(start, start + ids.shape[1])
        turn = self.cos[positions], self.sin[positions]
        x = norm(self.wte(ids))
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, turn, layer)
        logits = self.lm_head(norm(x))
        logits = (SOFTCAP * torch.tanh(logits / SOFTCAP)).float()
        if targets is None:
            return logits
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

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
    weight = model.lm_head.weight
    cache = [LayerCache(model.config, weight.device, weight.dtype) for _ in model.blocks]
    following = torch.tensor([list(ids)], device=weight.device)
    for _ in range(tokens):
        following = model(following, cache=cache)[:, -1:].argmax(dim=-1)  # (1, 1)
        yield int(following)
