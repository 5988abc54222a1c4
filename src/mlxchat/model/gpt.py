"""The classic nanochat GPT (commit dfc8833, October 2025) on MLX.

Rotary embeddings (rotated by minus theta, halves paired), query and key normalised after them,
RMS norms without weights, squared ReLU, no biases, untied embedding and head, logits capped softly.
Parameters are float32 and carry nanochat's names; activations are in the compute dtype, the loss in
float32.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from mlxchat.model.config import GPTConfig
from mlxchat.model.elementary import exp, tanh
from mlxchat.runtime import mx, nn, tree_flatten

ROPE_BASE = 10_000.0
NORM_EPS = 1.1920929e-07  # what torch's rms_norm uses when told nothing
SOFTCAP = 15.0
LOGITS_LIMIT = 2**23  # elements of float32 logits in one chunk of the loss
MOST_CHUNKS = 64  # since each adds to what is compiled


class LayerCache(Protocol):
    """The keys and values of one layer, as far as they have been computed."""

    @property
    def offset(self) -> int:
        """Positions held so far."""

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append (B, H, T, D) keys and values; returns all held, (B, H, offset, D)."""


def norm(x: mx.array) -> mx.array:
    """RMS norm over the last axis, without weights."""
    return mx.fast.rms_norm(x, None, NORM_EPS)


class Linear(nn.Linear):
    """A linear layer without bias whose float32 weight is cast to the dtype of its input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., in_features) to (..., out_features)."""
        return x @ self.weight.astype(x.dtype).T


class Attention(nn.Module):
    """Causal self-attention, multi-query where there are fewer key heads than query heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.head_dim
        self.c_q = Linear(config.n_embd, config.n_head * self.head_dim)
        self.c_k = Linear(config.n_embd, config.n_kv_head * self.head_dim)
        self.c_v = Linear(config.n_embd, config.n_kv_head * self.head_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def __call__(self, x: mx.array, cache: LayerCache | None) -> mx.array:
        """(B, T, C) to (B, T, C); positions follow those that the cache holds."""
        B, T, C = x.shape
        q = self.c_q(x).reshape(B, T, self.n_head, self.head_dim).transpose(0, 2, 1, 3)
        k = self.c_k(x).reshape(B, T, self.n_kv_head, self.head_dim).transpose(0, 2, 1, 3)
        v = self.c_v(x).reshape(B, T, self.n_kv_head, self.head_dim).transpose(0, 2, 1, 3)
        offset = cache.offset if cache is not None else 0
        q, k = norm(self._rotate(q, offset)), norm(self._rotate(k, offset))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.head_dim**-0.5, mask="causal" if T > 1 else None
        )
        return self.c_proj(y.transpose(0, 2, 1, 3).reshape(B, T, C))

    def _rotate(self, x: mx.array, offset: int) -> mx.array:
        """RoFormer (https://arxiv.org/abs/2104.09864), by minus theta, dimension i with i + D/2."""
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=ROPE_BASE, scale=-1.0, offset=offset
        )


class MLP(nn.Module):
    """Two linear layers with a squared ReLU (https://arxiv.org/abs/2109.08668) between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, C) to (B, T, C)."""
        return self.c_proj(nn.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """Attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array, cache: LayerCache | None) -> mx.array:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(norm(x), cache)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """The network. Fresh parameters are nanochat's: `initialise` draws them from a key.

    Args:
        config: its shape.
        dtype: of the activations.
    """

    def __init__(self, config: GPTConfig, dtype: mx.Dtype = mx.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.transformer: dict[str, Any] = {
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "h": [Block(config) for _ in range(config.n_layer)],
        }
        self.lm_head = Linear(config.n_embd, config.vocab_size)

    def __call__(self, ids: mx.array, cache: Sequence[LayerCache] | None = None) -> mx.array:
        """Logits of the next token at every position: (B, T) integers to (B, T, V) float32.

        ``cache``, one entry a layer, holds what came before ``ids`` and is extended by them.
        """
        return self.logits(self.features(ids, cache))

    def named_parameters(self) -> dict[str, mx.array]:
        """Every parameter by nanochat's name, such as ``transformer.h.0.attn.c_q.weight``."""
        return dict(tree_flatten(self.parameters()))

    def features(self, ids: mx.array, cache: Sequence[LayerCache] | None = None) -> mx.array:
        """The normalised residual stream after the last block, (B, T, C) in the compute dtype."""
        x = norm(self.transformer["wte"](ids).astype(self.dtype))
        for i, block in enumerate(self.transformer["h"]):
            x = block(x, cache[i] if cache is not None else None)
        return norm(x)

    def logits(self, x: mx.array) -> mx.array:
        """Softly capped logits in float32: (..., C) to (..., V)."""
        return SOFTCAP * tanh(self.lm_head(x).astype(mx.float32) / SOFTCAP)

    def losses(self, ids: mx.array, targets: mx.array) -> mx.array:
        """Cross entropy in nats at every position, (B, T) float32; 0 where the target is -1.

        Logits of more than `LOGITS_LIMIT` elements are computed in chunks of rows, and again for
        the gradient, so that those of the whole batch never exist at once.
        """
        x = self.features(ids).reshape(-1, self.config.n_embd)  # (N, C)
        flat = targets.reshape(-1)
        rows = max(LOGITS_LIMIT // self.config.vocab_size, -(-flat.size // MOST_CHUNKS))
        if flat.size <= rows:
            return self._cross_entropy(x, flat).reshape(targets.shape)
        chunks = []
        for start in range(0, flat.size, rows):
            # The integer targets stay outside what is checkpointed: they have no gradient.
            some = flat[start : start + rows]
            chunk = nn.utils.checkpoint(self, lambda y, t=some: self._cross_entropy(y, t))
            chunks.append(chunk(x[start : start + rows]))
        return mx.concatenate(chunks).reshape(targets.shape)

    def _cross_entropy(self, x: mx.array, targets: mx.array) -> mx.array:
        kept = targets >= 0
        logits = self.logits(x)
        chosen = mx.take_along_axis(logits, mx.where(kept, targets, 0)[:, None], axis=-1)[:, 0]
        # The soft cap bounds the logits, so no maximum need be subtracted before exp.
        return (mx.log(exp(logits).sum(axis=-1)) - chosen) * kept


def initialise(model: GPT, key: mx.array) -> None:
    """Draw nanochat's initial parameters, in place.

    Linear layers are normal with standard deviation min(1, sqrt(out/in)) / sqrt(in)
    (https://arxiv.org/abs/2310.17813), the embedding standard normal, the head and the layers that
    write to the residual stream zero.
    """
    drawn = []
    for name, weight in sorted(model.named_parameters().items()):
        key, own = mx.random.split(key)
        if name == "lm_head.weight" or name.endswith("c_proj.weight"):
            value = mx.zeros(weight.shape)
        elif name == "transformer.wte.weight":
            value = mx.random.normal(weight.shape, key=own)
        else:
            fan_out, fan_in = weight.shape
            std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
            value = mx.random.normal(weight.shape, key=own) * std
        drawn.append((name, value))
    model.load_weights(drawn)
    mx.eval(model.parameters())
