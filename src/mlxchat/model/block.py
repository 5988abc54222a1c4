"""A layer of the network: attention and MLP, each on the normalised residual stream.

Causal attention, to all that came before or to a window of it.

Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), as nanochat has them.

Dimension i turns with dimension i + D/2, by minus theta.
"""

from functools import lru_cache
from typing import NamedTuple, Protocol, cast

import numpy as np

from mlxchat.model.config import GPTConfig
from mlxchat.model.cpu import FEW_ROWS, multiply_few_rows, relu_squared
from mlxchat.model.quantized import QuantizedLinear
from mlxchat.model.size import QUERIES
from mlxchat.runtime import machine, mx, nn

UNSEEN = -1e9  # added to a score, makes its weight zero


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    window: int,
    hidden: mx.array | None = None,
) -> mx.array:
    """What the queries of the last T of S positions make of the values, (B, H, T, D).

    On CPUs, where the scores are not fused, queries are taken in blocks, each with the keys that
    it can see: half of the scores at most are neither computed nor held.

    Args:
        q: (B, H, T, D).
        k, v: (B, n_kv_head, S, D).
        scale: of the scores.
        window: positions that each can see before itself.
        hidden: what is added to the scores of a single query, (B, 1, 1, S); it sees all S.
    """
    T, S = q.shape[2], k.shape[2]
    if T == 1:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=hidden)
    block = QUERIES if machine().backend == "cpu" else T
    seen = []
    for first in range(0, T, block):
        last = min(first + block, T)
        begin, end = max(0, S - T + first - window), S - T + last
        seen.append(
            mx.fast.scaled_dot_product_attention(
                q[:, :, first:last],
                k[:, :, begin:end],
                v[:, :, begin:end],
                scale=scale,
                mask=_mask(last - first, end - begin, window, q.dtype),
            )
        )
    return mx.concatenate(seen, axis=2)


def _mask(T: int, S: int, window: int, dtype: mx.Dtype) -> str | mx.array:
    """Which of S positions the last T can see; an array is added to the scores, since there is no
    fused kernel for booleans.
    """
    if window + 1 >= S:
        return "causal"
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)
    seen = (key <= query) & (key >= query - window)  # (T, S)
    return mx.where(seen, mx.array(0, dtype), mx.array(UNSEEN, dtype))


class Rotation(NamedTuple):
    """By how much positions turn."""

    base: float
    offset: int | mx.array  # positions before them; (B,) of each row, where there is one position


def rotate(x: mx.array, by: Rotation) -> mx.array:
    """Turn (B, T, H, D) queries or keys.

    In training one element-wise pass in each direction, on the layout that the projections make;
    `mx.fast.rope` wants heads before positions, and takes four times as long on CUDA. A single
    position has no such layout: there it is the one kernel that decoding wants.
    """
    B, T, H, D = x.shape
    if T > 1:
        return cast(mx.array, _rotate(x, *_table(T, cast(int, by.offset), D, by.base)))
    turned = mx.fast.rope(
        x.reshape(B, H, T, D), D, traditional=False, base=by.base, scale=-1.0, offset=by.offset
    )
    return turned.reshape(x.shape)


@lru_cache(maxsize=2)
def _table(T: int, offset: int, D: int, base: float) -> tuple[mx.array, mx.array]:
    """Cosines (T, 1, 1, D/2) and sines (T, 1, 2, D/2), the second half negative; float32."""
    frequencies = np.float32(base) ** (-np.arange(0, D, 2, dtype=np.float32) / D)
    theta = np.arange(offset, offset + T, dtype=np.float32)[:, None] * frequencies  # (T, D/2)
    cos, sin = np.cos(theta), np.sin(theta)
    return mx.array(cos[:, None, None]), mx.array(np.stack([sin, -sin], axis=1)[:, None])


@mx.custom_function
def _rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    halves = x.reshape(*x.shape[:-1], 2, -1)
    turned = halves * cos + halves[..., ::-1, :] * sin
    return turned.astype(x.dtype).reshape(x.shape)


@_rotate.vjp
def _turn_back(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    _, cos, sin = primals
    back = cast(mx.array, _rotate(cotangent, cos, -sin))
    return back, mx.zeros_like(cos), mx.zeros_like(sin)


NORM_EPS = 1.1920929e-07  # what torch's rms_norm uses when told nothing


class LayerCache(Protocol):
    """The keys and values of one layer, as far as they have been computed and can be seen."""

    def extend(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Append (B, H, T, D) keys and values.

        Returns (B, H, S, D) keys and values: those that the new positions can see, S - T of them
        before the T new ones. Where T is 1, all S can be seen, in any order, but for those hidden
        by what comes third, (B, 1, 1, S) to be added to the scores.
        """


def norm(x: mx.array) -> mx.array:
    """RMS norm over the last axis, without weights."""
    return mx.fast.rms_norm(x, None, NORM_EPS)


class Linear(nn.Linear):
    """A linear layer without bias whose float32 weight is cast to the dtype of its input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """(..., in_features) to (..., out_features), added to ``onto`` in the same kernel."""
        weight = self.weight.astype(x.dtype)
        if machine().backend == "cpu" and x.size <= FEW_ROWS * x.shape[-1]:
            y = multiply_few_rows(x, weight)
            return y if onto is None else onto + y
        return x @ weight.T if onto is None else mx.addmm(onto, x, weight.T)

    @property
    def dense(self) -> mx.array:
        """The weight as a matrix, which of a quantized layer it isn't."""
        return self.weight

    def to_quantized(  # type: ignore[override]  # of what nn.Linear takes, what is used
        self, group_size: int, bits: int, mode: str
    ) -> QuantizedLinear:
        """This layer with its weight quantized: what `nn.quantize` puts in its place."""
        layer: QuantizedLinear = QuantizedLinear.from_linear(self, group_size, bits, mode)
        return layer


class Attention(nn.Module):
    """Causal self-attention, multi-query where there are fewer key heads than query heads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.head_dim
        self.window = config.windows[layer]
        self.scale = config.traits.qk_scale**2 / self.head_dim**0.5
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, config.kv_dim)
        self.c_v = Linear(config.n_embd, config.kv_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.c_qkv: Linear | None = None  # c_q, c_k and c_v in one, once they are joined
        self.gate_channels, self.gate_scale = config.traits.gate or (0, 1.0)
        if self.gate_channels and config.has_value_embedding(layer):
            self.ve_gate = Linear(self.gate_channels, config.n_kv_head)

    def heads(
        self, x: mx.array, turn: Rotation, value_embedding: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Queries and keys, normalised and turned, and values: of (B, T, C), each (B, H, T, D).

        A value embedding, (B, T, n_kv_head * D), is added to the values, by head as much as its
        gate says where there is one.
        """
        shape, n_qk = (*x.shape[:2], -1, self.head_dim), self.n_head + self.n_kv_head
        if self.c_qkv is None:
            q, k, v = (linear(x).reshape(shape) for linear in (self.c_q, self.c_k, self.c_v))
            q, k = rotate(norm(q), turn), rotate(norm(k), turn)  # in either order
        else:
            joined = self.c_qkv(x).reshape(shape)
            qk, v = rotate(norm(joined[:, :, :n_qk]), turn), joined[:, :, n_qk:]
            q, k = qk[:, :, : self.n_head], qk[:, :, self.n_head :]
        if value_embedding is not None:
            embedding = value_embedding.reshape(v.shape)
            if self.gate_channels:
                gate = self.gate_scale * mx.sigmoid(self.ve_gate(x[..., : self.gate_channels]))
                embedding = gate[..., None] * embedding  # (B, T, n_kv_head, 1) * (... D)
            v = v + embedding
        q, k, v = (heads.transpose(0, 2, 1, 3) for heads in (q, k, v))
        return q, k, v

    def join(self) -> None:
        """Have one product make queries, keys and values from now on: four kernels less."""
        names = ("c_q", "c_k", "c_v")
        if len({_format(self[name]) for name in names}) > 1:
            return  # each quantized in its own way, by another program
        layers = [self.pop(name) for name in names]
        joined = {name: mx.concatenate([layer[name] for layer in layers]) for name in layers[0]}
        self.c_qkv = layers[0].update(joined)


def _format(layer: nn.Module) -> tuple[object, ...]:
    return type(layer), *(getattr(layer, name, None) for name in ("bits", "group_size", "mode"))


class MLP(nn.Module):
    """Two linear layers with a squared ReLU (https://arxiv.org/abs/2109.08668) between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def __call__(self, x: mx.array) -> mx.array:
        """Add to the stream x, (B, T, C), what the layers make of it."""
        return self.c_proj(relu_squared(self.c_fc(norm(x))), onto=x)


class Block(nn.Module):
    """Attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self._compiled = False

    def __call__(
        self,
        x: mx.array,
        turn: Rotation,
        value_embedding: mx.array | None,
        cache: LayerCache | None,
    ) -> mx.array:
        """(B, T, C) to (B, T, C)."""
        before, after = self._before, self._after
        if self._compiled and x.shape[1] == 1:
            before, after = self._before_one, self._after_one
        q, k, v = before(x, turn, value_embedding)
        hidden = None
        if cache is not None:
            k, v, hidden = cache.extend(k, v)
        return after(x, attend(q, k, v, self.attn.scale, self.attn.window, hidden))

    def ready_to_infer(self) -> None:
        """Prepare for single positions, where a kernel takes longer to launch than to run: fewer of
        them, and compiled on GPUs. On CPUs MLX would need a compiler installed.
        """
        self.attn.join()
        if machine().backend != "cpu":
            self._before_one, self._after_one = mx.compile(self._before), mx.compile(self._after)
            self._compiled = True

    def _before(
        self, x: mx.array, turn: Rotation, value_embedding: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        return self.attn.heads(norm(x), turn, value_embedding)

    def _after(self, x: mx.array, y: mx.array) -> mx.array:
        y = y.transpose(0, 2, 1, 3).reshape(x.shape)
        return self.mlp(self.attn.c_proj(y, onto=x))
