"""The parts that both competitors in torch have in common: devices and layers."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlxchat.model.config import GPTConfig

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (T, 1, D/2) each


def best_device() -> torch.device:
    """The fastest that torch has here."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def name_of(device: torch.device) -> str:
    """The name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dtype_on(device: torch.device) -> torch.dtype:
    """Of activations, and of Muon's matrix products."""
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


class Rotations(nn.Module):
    """The cosines and sines of every position, (sequence_len, 1, D/2)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
        frequencies = config.traits.rope_base**-exponents
        theta = torch.outer(torch.arange(config.sequence_len), frequencies)[:, None]
        self.register_buffer("cos", theta.cos(), persistent=False)
        self.register_buffer("sin", theta.sin(), persistent=False)

    def forward(self, positions: slice | Tensor) -> Rotation:
        """Those of T positions."""
        return self.cos[positions], self.sin[positions]


class Linear(nn.Linear):
    """A linear layer without bias, computed in the dtype of its input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return functional.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """The projections of self-attention; what is between them is the architecture's."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, config.kv_dim)
        self.c_v = Linear(config.n_embd, config.kv_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def project(self, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) to queries, keys and values, (B, T, H, D) each."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = norm(rotate(self.c_q(x).view(heads), turn))
        k = norm(rotate(self.c_k(x).view(heads), turn))
        return q, k, self.c_v(x).view(heads)

    def output(self, y: Tensor) -> Tensor:
        """Project the results of the heads, (B, H, T, D), to (B, T, C)."""
        return cast(Tensor, self.c_proj(y.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two linear layers with a squared ReLU between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return cast(Tensor, self.c_proj(functional.relu(self.c_fc(x)).square()))


class Network(nn.Module):
    """The embedding, the rotations and the head around the blocks, on the CPU in float32."""

    def __init__(self, config: GPTConfig, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.config = config
        wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.transformer = nn.ModuleDict({"wte": wte, "h": blocks})
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size)
        self.rotations = Rotations(config)

    @property
    def wte(self) -> nn.Embedding:
        """The embedding of the tokens."""
        return cast(nn.Embedding, self.transformer["wte"])

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return cast(nn.ModuleList, self.transformer["h"])


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy where the (B, T) targets are not -1."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
