"""A transformer block: attention, then an MLP, each added to the residual stream.

Shapes: B sequences of T positions, C channels in the residual stream, H query heads of D channels;
S counts the positions that can be attended to, cached ones included.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from mlxchat.model.attention import UNSEEN, scores_are_bounded
from mlxchat.model.config import GPTConfig
from mlxchat.model.cpu import relu_squared
from mlxchat.model.cpu_attention import bounded_attention
from mlxchat.model.dropout import NO_DROPOUT, Dropout
from mlxchat.model.linear import Linear
from mlxchat.model.lora_linear import concatenated
from mlxchat.model.norm import Normed, norm_and_stream
from mlxchat.model.product import product
from mlxchat.model.rope import Rope, norm_and_rotate, split_heads
from mlxchat.model.size import query_block
from mlxchat.runtime import machine, mx, nn


class LayerCache(Protocol):
    """The keys and values of one layer for the positions read so far."""

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Append T new positions, and attend from them to all that they can see.

        Args:
            q: (B, H, T, D), normalised.
            k, v: (B, n_kv_head, T, D), the keys normalised.
            scale: factor of the scores, before the softmax.

        Returns:
            (B, H, T, D).
        """


class Attention(nn.Module):
    """Causal self-attention; grouped-query if there are fewer key heads than query heads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.head_dim
        self.window = config.windows[layer]
        # nanochat multiplies q and k by qk_scale each; one factor on the scores is the same.
        self.scale = config.traits.qk_scale**2 / self.head_dim**0.5
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, config.kv_dim)
        self.c_v = Linear(config.n_embd, config.kv_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        # Replaces c_q, c_k and c_v after `fuse_qkv`.
        self.c_qkv: Callable[[mx.array], mx.array] | None = None
        self.gate_channels, self.gate_scale = config.traits.gate or (0, 1.0)
        if self.gate_channels and config.has_value_embedding(layer):
            self.ve_gate = Linear(self.gate_channels, config.n_kv_head)

    def __call__(
        self,
        x: Normed,
        rope: Rope,
        value_embedding: mx.array | None = None,
        cache: LayerCache | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> mx.array:
        """Let every position attend to itself and to the positions that it can see before it.

        Args:
            x: (B, T, C) each, the stream and its norm.
            rope: the rotation of the T positions.
            value_embedding: (B, T, n_kv_head * D), added to the values.
            cache: the keys and values of earlier positions, extended by those of ``x``.
            dropout: of the result, in training.

        Returns:
            (B, T, C), the stream to which the result is added.
        """
        q, k, v = self.qkv(x, rope, value_embedding)
        y = self.attend(q, k, v, cache)  # (B, H, T, D)
        return self.output(y, x.stream, dropout)  # (B, T, C)

    def qkv(
        self, x: Normed, rope: Rope, value_embedding: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Project (B, T, C) to queries, (B, H, T, D), and keys and values, (B, n_kv_head, T, D)."""
        B, T, _ = x.stream.shape
        shape = (B, T, -1, self.head_dim)
        qkv = self._joined_product(x.normed)
        if qkv is not None:
            q, k, v = split_heads(qkv.reshape(shape), self.n_head, self.n_kv_head, rope)
        else:
            q = norm_and_rotate(self.c_q(x.normed).reshape(shape), rope)  # (B, T, H, D)
            k = norm_and_rotate(self.c_k(x.normed).reshape(shape), rope)  # (B, T, n_kv_head, D)
            v = self.c_v(x.normed).reshape(shape)  # (B, T, n_kv_head, D)
        if value_embedding is not None:
            ve = value_embedding.reshape(v.shape)
            if self.gate_channels:
                gate = self.ve_gate(x.normed[..., : self.gate_channels])  # (B, T, n_kv_head)
                ve = self.gate_scale * mx.sigmoid(gate.reshape(*v.shape[:-1], 1)) * ve
            v = v + ve
        if T == 1:  # either order of the two is the same
            q, k, v = (heads.reshape(B, -1, 1, self.head_dim) for heads in (q, k, v))
        else:
            q, k, v = (heads.transpose(0, 2, 1, 3) for heads in (q, k, v))
        return q, k, v

    def _joined_product(self, x: mx.array) -> mx.array | None:
        """Return the queries, keys and values of (B, T, C) from one product, (B, T, all heads * D).

        None if they are better computed one by one: on CPUs, which then read each in order, and
        from layers that another program quantized in different formats.
        """
        if self.c_qkv is not None:
            return self.c_qkv(x)
        layers = (self.c_q, self.c_k, self.c_v)
        if machine().backend == "cpu" or not all(type(layer) is Linear for layer in layers):
            return None
        return product(x, mx.concatenate([layer.weight.astype(x.dtype) for layer in layers]))

    def attend(self, q: mx.array, k: mx.array, v: mx.array, cache: LayerCache | None) -> mx.array:
        """Attend to the cached keys and the new ones; returns (B, H, T, D)."""
        if cache is not None:
            return cache.attend(q, k, v, self.scale)
        on_cpu = machine().backend == "cpu" and q.dtype == mx.float32
        if on_cpu and scores_are_bounded(self.scale, self.head_dim):
            return bounded_attention(q, k, v, self.scale, self.window)
        return causal_attention(q, k, v, self.scale, self.window)

    def output(self, y: mx.array, onto: mx.array, dropout: Dropout = NO_DROPOUT) -> mx.array:
        """Join the heads of (B, H, T, D) and project them to (B, T, C), added to ``onto``."""
        B, H, T, D = y.shape
        if T > 1:
            y = y.transpose(0, 2, 1, 3)
        y = y.reshape(B, T, H * D)
        return dropout.added(self.c_proj, y, onto)

    def fuse_qkv(self) -> None:
        """Fuse the q, k and v projections into one matrix product; this saves four kernels.

        Layers that another program quantized in different formats are not fused.
        """
        names = ("c_q", "c_k", "c_v")
        fused = concatenated([self[name] for name in names])
        if fused is None:
            return
        for name in names:
            self.pop(name)
        self.c_qkv = fused


def causal_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    window: int,
    mask: mx.array | None = None,
) -> mx.array:
    """Return the scaled dot-product attention of the last T of S positions, (B, H, T, D).

    Without a fused kernel MLX holds all T * S scores. There the queries are taken in blocks of
    `query_block`, each with only the keys that it can see: half of the scores, and more where there
    is a window, are never computed, and those of one block are held at a time.

    Args:
        q: (B, H, T, D), normalised.
        k, v: (B, n_kv_head, S, D), the keys normalised.
        scale: factor of the scores, before the softmax.
        window: how many positions before its own each query can see.
        mask: None if T > 1, where the causal mask and the window are made here. If T = 1, None or
            (B, 1, 1, S), to be added to the scores; the query sees all other positions whatever the
            window, since a cache passes only those that the window allows.
    """
    T, S = q.shape[2], k.shape[2]
    if T == 1:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    block = query_block(machine().backend, T, S, window)
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        # The keys that the block of queries sees.
        first_key, stop_key = max(0, S - T + start - window), S - T + stop
        outputs.append(
            mx.fast.scaled_dot_product_attention(
                q[:, :, start:stop],
                k[:, :, first_key:stop_key],
                v[:, :, first_key:stop_key],
                scale=scale,
                mask=_causal_mask(stop - start, stop_key - first_key, window, q.dtype),
            )  # (B, H, stop - start, D)
        )
    return mx.concatenate(outputs, axis=2)


def _causal_mask(T: int, S: int, window: int, dtype: mx.Dtype) -> str | mx.array:
    """Return the mask for the last T of S positions: "causal", or (T, S) to add to the scores.

    A boolean mask would say the same, but MLX has no fused kernel for those.
    """
    if window + 1 >= S:
        return "causal"
    if T == S:
        return _mask_of_whole(T, window, dtype)
    return _window_mask(T, S, window, dtype)


def _window_mask(T: int, S: int, window: int, dtype: mx.Dtype) -> mx.array:
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)
    seen = (key <= query) & (key >= query - window)  # (T, S)
    return mx.where(seen, mx.array(0, dtype), mx.array(UNSEEN, dtype))


@lru_cache(maxsize=2)
def _mask_of_whole(T: int, window: int, dtype: mx.Dtype) -> mx.array:
    """Return the mask of training, which all layers with a window share from step to step."""
    mask = _window_mask(T, T, window, dtype)
    mx.eval(mask)  # now: a function that is traced then takes it for a constant
    return mask


class MLP(nn.Module):
    """Two linear layers with a squared ReLU between them (https://arxiv.org/abs/2109.08668)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def __call__(self, x: Normed, dropout: Dropout = NO_DROPOUT) -> mx.array:
        """Map the norm of a stream, (B, T, C), and add the result to the stream."""
        hidden = relu_squared(self.c_fc(x.normed))  # (B, T, 4 * C)
        return dropout.added(self.c_proj, hidden, x.stream)  # (B, T, C)


class Block(nn.Module):
    """Attention, then the MLP, each on the normalised residual stream and added to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def __call__(
        self,
        x: Normed,
        rope: Rope,
        value_embedding: mx.array | None = None,
        cache: LayerCache | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> mx.array:
        """Map the residual stream with its norm, (B, T, C), to the stream after this block."""
        # x = x + attn(norm(x)); x = x + mlp(norm(x)). The kernel of each last matrix product does
        # the addition too.
        drop_attention, drop_mlp = dropout.split(2)
        stream = self.attn(x, rope, value_embedding, cache, drop_attention)  # (B, T, C)
        return self.mlp(norm_and_stream(stream), drop_mlp)
