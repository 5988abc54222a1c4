"""nanochat's modern GPT in torch: the competitor.

The formulas are those of nanochat's commit 92d63d4 (July 2026); `golden` shows that the numbers are
too. `torch_training` trains it.

nanochat sees through windows by FlashAttention 3, a package of its own, or else by
scaled_dot_product_attention with a mask, which computes the scores that the mask hides. Of what
torch itself has, flex_attention skips those; it is a kernel for CUDA, and only if it is compiled.
So compiled models on CUDA have it (`GPT.fuse_windows`), others the mask, which is made once. Layers
that see all positions have the causal kernels of scaled_dot_product_attention everywhere.
"""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mlxchat.model.config import SMEAR_CHANNELS, Gate, GPTConfig
from rivals.torch_parts import MLP, Attention, Linear, Network, Rotation, mean_loss, norm


class SeeAll(nn.Module):
    """Causal attention to all earlier positions."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.grouped = config.n_kv_head < config.n_head
        self.scale = config.traits.qk_scale**2 / math.sqrt(config.head_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values, (B, H, T, D), to (B, H, T, D)."""
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.scale, enable_gqa=self.grouped
        )


class SeeMasked(SeeAll):
    """Attention within a window, by a mask."""

    mask: Tensor  # (sequence_len, sequence_len), added to the scores; of the activations' dtype

    def __init__(self, config: GPTConfig, window: int) -> None:
        super().__init__(config)
        position = torch.arange(config.sequence_len)
        hidden = ~_in_window(position[:, None], position, window)
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values, (B, H, T, D), to (B, H, T, D)."""
        T = q.shape[2]
        return functional.scaled_dot_product_attention(
            q, k, v, self.mask[:T, :T], scale=self.scale, enable_gqa=self.grouped
        )


class SeeBlocks(SeeAll):
    """Attention within a window, without the blocks that it hides; T is the whole context."""

    def __init__(self, config: GPTConfig, window: int, device: torch.device) -> None:
        super().__init__(config)

        def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return _in_window(query, key, window)

        T = config.sequence_len
        self.blocks = create_block_mask(seen, None, None, T, T, device=device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values, (B, H, T, D), to (B, H, T, D)."""
        return flex_attention(
            q, k, v, block_mask=self.blocks, scale=self.scale, enable_gqa=self.grouped
        )


def _in_window(query: Tensor, key: Tensor, window: int) -> Tensor:
    return (key <= query) & (query - key <= window)


class GatedAttention(Attention):
    """Causal self-attention, in some layers with an embedding of the token added to its values."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config)
        self.gate = cast(Gate, config.traits.gate)
        if config.has_value_embedding(layer):
            self.ve_gate = Linear(self.gate.channels, config.n_kv_head)

    def forward(self, x: Tensor, turn: Rotation, values: Tensor | None, see: nn.Module) -> Tensor:
        """(B, T, C), and value embeddings of (B, T, n_kv_head * D), to (B, T, C)."""
        q, k, v = self.project(x, turn)
        if values is not None:
            gate = self.gate.scale * torch.sigmoid(self.ve_gate(x[..., : self.gate.channels]))
            v = v + gate[..., None] * values.view(v.shape)
        return self.output(see(*(heads.transpose(1, 2) for heads in (q, k, v))))


class Block(nn.Module):
    """Attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = GatedAttention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn: Rotation, values: Tensor | None, see: nn.Module) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(norm(x), turn, values, see)
        return cast(Tensor, x + self.mlp(norm(x)))


class GPT(Network):
    """The network, with nanochat's names and initial parameters, on the CPU in float32."""

    def __init__(self, config: GPTConfig) -> None:
        layers = range(config.n_layer)
        super().__init__(config, nn.ModuleList(Block(config, layer) for layer in layers))
        self.resid_lambdas = nn.Parameter(torch.linspace(1.15, 1.05, config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.linspace(0.20, 0.05, config.n_layer))
        self.smear_gate = Linear(SMEAR_CHANNELS, 1)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        self.value_embeds = nn.ModuleDict(
            {
                str(layer): nn.Embedding(config.padded_vocab_size, config.kv_dim)
                for layer in layers
                if config.has_value_embedding(layer)
            }
        )
        self._see({w: SeeMasked(config, w) for w in self._short_windows})
        self._initialise()

    @property
    def _short_windows(self) -> set[int]:
        """The windows that do not reach over the whole context."""
        return {window for window in self.config.windows if window < self.config.sequence_len - 1}

    def _see(self, through: Mapping[int, SeeAll]) -> None:
        everything = SeeAll(self.config)
        self.see = nn.ModuleList(through.get(w, everything) for w in self.config.windows)

    def fuse_windows(self, device: torch.device) -> None:
        """See through windows by flex_attention: the model must be compiled, and on CUDA."""
        self._see({w: SeeBlocks(self.config, w, device) for w in self._short_windows})

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """The mean loss where ``targets`` are not -1; without targets logits, (B, T, V) float32."""
        turn = self.rotations(slice(0, ids.shape[1]))
        x = x0 = middle = self._smear(norm(self.wte(ids)))
        for i, (block, see) in enumerate(zip(self.blocks, self.see, strict=True)):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            key = str(i)
            values = self.value_embeds[key](ids) if key in self.value_embeds else None
            x = block(x, turn, values, see)
            if i == self.config.backout_layer:
                middle = x
        x = norm(x - self.backout_lambda.to(x.dtype) * middle)
        cap = self.config.softcap
        logits = self.lm_head(x)[..., : self.config.vocab_size].float()
        logits = cap * torch.tanh(logits / cap)
        return logits if targets is None else mean_loss(logits, targets)

    def _smear(self, x: Tensor) -> Tensor:
        """Add to each token's embedding a gated share of the one before it."""
        gate = torch.sigmoid(self.smear_gate(x[:, 1:, :SMEAR_CHANNELS]))
        added = self.smear_lambda.to(x.dtype) * gate * x[:, :-1]
        return torch.cat([x[:, :1], x[:, 1:] + added], dim=1)

    @torch.no_grad()
    def _initialise(self) -> None:
        bound = math.sqrt(3 / self.config.n_embd)
        for name, weight in self.named_parameters():
            if name == "transformer.wte.weight":
                weight.normal_(std=0.8)
            elif name == "lm_head.weight":
                weight.normal_(std=0.001)
            elif name.endswith("c_proj.weight"):
                weight.zero_()
            elif name.endswith("gate.weight"):
                weight.uniform_(0, 0.02)
            elif weight.ndim > 1:
                most = 0.4 * bound if name.endswith("c_fc.weight") else bound
                weight.uniform_(-most, most)
