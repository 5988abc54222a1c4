"""The nanochat GPT on MLX: classic (commit dfc8833, October 2025) and modern (92d63d4, July 2026).

Both have rotary embeddings (rotated by minus theta, halves paired), query and key normalised after
them, RMS norms without weights, squared ReLU, no biases, an untied embedding and head, and logits
capped softly. Modern adds

- to each token's embedding a share of the one before it (smear),
- before each layer the embedding once more, both streams weighted by learnt scalars,
- to the values of every other layer an embedding of the token, by a gate,
- windows that most layers attend within,
- at the end the subtraction of what the stream held in the middle (backout).

Parameters carry nanochat's names and are float32 in training; activations are in the compute dtype,
the loss in float32.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from mlxchat.model.config import GATE_CHANNELS, SMEAR_CHANNELS, GPTConfig
from mlxchat.model.elementary import relu_squared
from mlxchat.model.loss import cross_entropies, mean_cross_entropy, soft_cap
from mlxchat.model.rotary import Rotation, rotate
from mlxchat.runtime import mx, nn, tree_flatten

ROPE_BASE = {"classic": 10_000.0, "modern": 100_000.0}
QK_SCALE = {"classic": 1.0, "modern": 1.2}  # of normalised queries and of keys
UNSEEN = -1e9  # added to a score, makes its weight zero
NORM_EPS = 1.1920929e-07  # what torch's rms_norm uses when told nothing


Mask = str | mx.array | None
"""Which keys each query can see, as `mx.fast.scaled_dot_product_attention` takes it."""


class LayerCache(Protocol):
    """The keys and values of one layer, as far as they have been computed and can be seen."""

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, Mask]:
        """Append (B, H, T, D) keys and values.

        Returns (B, H, S, D) keys and values, all that the new positions can see among them, and
        which of them each can see.
        """


class Cache(Protocol):
    """What a model has read."""

    @property
    def offset(self) -> int | mx.array:
        """Positions read so far; (B,) where the rows have each read their own number of them."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One a layer."""

    def read(self, ids: mx.array) -> mx.array | None:
        """Note (B, T) ids as read; returns the ones before them, (B, 1), None at the beginning."""


def norm(x: mx.array) -> mx.array:
    """RMS norm over the last axis, without weights."""
    return mx.fast.rms_norm(x, None, NORM_EPS)


def mask(T: int, S: int, window: int, dtype: mx.Dtype) -> Mask:
    """Which of S positions the last T of them can see: ``window`` before each, and itself.

    As an array it is added to the scores, since there is no fused kernel for booleans.
    """
    if T == 1:
        return None
    if window + 1 >= S:
        return "causal"
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)
    seen = (key <= query) & (key >= query - window)  # (T, S)
    return mx.where(seen, mx.array(0, dtype), mx.array(UNSEEN, dtype))


class Linear(nn.Linear):
    """A linear layer without bias whose float32 weight is cast to the dtype of its input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """(..., in_features) to (..., out_features), added to ``onto`` in the same kernel."""
        weight = self.weight.astype(x.dtype).T
        return x @ weight if onto is None else mx.addmm(onto, x, weight)


class Attention(nn.Module):
    """Causal self-attention, multi-query where there are fewer key heads than query heads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.head_dim
        self.window = config.windows[layer]
        self.scale = QK_SCALE[config.arch] ** 2 / self.head_dim**0.5
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, config.kv_dim)
        self.c_v = Linear(config.n_embd, config.kv_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        if config.has_value_embedding(layer):
            self.ve_gate = Linear(GATE_CHANNELS, config.n_kv_head)

    def __call__(
        self,
        x: mx.array,
        turn: Rotation,
        value_embedding: mx.array | None,
        cache: LayerCache | None,
    ) -> mx.array:
        """Add to the stream x, (B, T, C), what attention makes of it.

        A value embedding, (B, T, n_kv_head * D), is added to the values, by head as much as its
        gate says (https://arxiv.org/abs/2410.17897).
        """
        (B, T, C), normed = x.shape, norm(x)
        q = self.c_q(normed).reshape(B, T, self.n_head, self.head_dim)
        k = self.c_k(normed).reshape(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(normed).reshape(B, T, self.n_kv_head, self.head_dim)
        if value_embedding is not None:
            gate = 3 * mx.sigmoid(self.ve_gate(normed[..., :GATE_CHANNELS]))  # (B, T, n_kv_head)
            v = v + gate[..., None] * value_embedding.reshape(v.shape)
        q, k = rotate(norm(q), turn), rotate(norm(k), turn)  # in either order
        q, k, v = (heads.transpose(0, 2, 1, 3) for heads in (q, k, v))  # (B, H, T, D)
        if cache is None:
            seen = mask(T, T, self.window, q.dtype)
        else:
            k, v, seen = cache.extend(k, v)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=seen)
        return self.c_proj(y.transpose(0, 2, 1, 3).reshape(B, T, C), onto=x)


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

    def __call__(
        self,
        x: mx.array,
        turn: Rotation,
        value_embedding: mx.array | None,
        cache: LayerCache | None,
    ) -> mx.array:
        """(B, T, C) to (B, T, C)."""
        return self.mlp(self.attn(x, turn, value_embedding, cache))


class GPT(nn.Module):
    """The network, its parameters zero or arbitrary: `initial.initialise` draws nanochat's.

    Args:
        config: its shape.
        dtype: of the activations.
    """

    def __init__(self, config: GPTConfig, dtype: mx.Dtype = mx.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        layers = range(config.n_layer)
        self.transformer: dict[str, Any] = {
            "wte": nn.Embedding(config.rows, config.n_embd),
            "h": [Block(config, layer) for layer in layers],
        }
        self.lm_head = Linear(config.n_embd, config.rows)
        if config.arch == "modern":
            self.resid_lambdas = mx.ones(config.n_layer)
            self.x0_lambdas = mx.zeros(config.n_layer)
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_lambda = mx.zeros(1)
            self.backout_lambda = mx.zeros(1)
            self.value_embeds = [
                nn.Embedding(config.rows, config.kv_dim)
                if config.has_value_embedding(layer)
                else nn.Identity()  # keeps the others at their layer's place, and name
                for layer in layers
            ]

    def __call__(self, ids: mx.array, cache: Cache | None = None) -> mx.array:
        """Logits of the next token at every position: (B, T) integers to (B, T, V) float32.

        ``cache`` holds what came before ``ids`` and is extended by them.
        """
        return self.logits(self.features(ids, cache))

    def named_parameters(self) -> dict[str, mx.array]:
        """Every parameter by nanochat's name, such as ``transformer.h.0.attn.c_q.weight``."""
        return dict(tree_flatten(self.parameters()))

    def cast_matrices(self) -> None:
        """Hold the matrices in the compute dtype from now on: to infer quickly, not to train."""
        matrices = {n: w for n, w in self.named_parameters().items() if w.ndim > 1}
        self.load_weights([(n, w.astype(self.dtype)) for n, w in matrices.items()], strict=False)
        mx.eval(self.parameters())  # else both copies are held until the first token

    def features(self, ids: mx.array, cache: Cache | None = None) -> mx.array:
        """The normalised residual stream after the last block, (B, T, C) in the compute dtype."""
        config, offset = self.config, cache.offset if cache is not None else 0
        turn = Rotation(ROPE_BASE[config.arch], offset)
        before = cache.read(ids) if cache is not None else None
        x = self._embed(ids)
        if config.arch == "modern":
            x = self._smear(x, before)
        x0 = middle = x
        for i, block in enumerate(self.transformer["h"]):
            value_embedding = None
            if config.arch == "modern":
                x = self._mix(self.resid_lambdas[i], x, self.x0_lambdas[i], x0)
            if config.has_value_embedding(i):
                value_embedding = self.value_embeds[i](ids).astype(self.dtype)
            x = block(x, turn, value_embedding, cache.layers[i] if cache is not None else None)
            if i == config.n_layer // 2:
                middle = x
        if config.arch == "modern":
            x = self._mix(1, x, -self.backout_lambda, middle)
        return norm(x)

    def logits(self, x: mx.array) -> mx.array:
        """Softly capped logits in float32: (..., C) to (..., V)."""
        return soft_cap(self.lm_head(x)[..., : self.config.vocab_size])

    def losses(self, ids: mx.array, targets: mx.array) -> mx.array:
        """Cross entropy in nats at every position, (B, T) float32; 0 where the target is -1."""
        return cross_entropies(*self._predictions(ids, targets)).reshape(targets.shape)

    def loss(self, ids: mx.array, targets: mx.array) -> mx.array:
        """The mean of `losses` where the target is not -1, for training."""
        return mean_cross_entropy(*self._predictions(ids, targets))

    def _predictions(
        self, ids: mx.array, targets: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, int]:
        x = self.features(ids).reshape(-1, self.config.n_embd)  # (N, C)
        return x, self.lm_head.weight, targets.reshape(-1), self.config.vocab_size

    def _embed(self, ids: mx.array) -> mx.array:
        return norm(self.transformer["wte"](ids).astype(self.dtype))

    def _smear(self, x: mx.array, before: mx.array | None) -> mx.array:
        """Add to each embedding a share of the one before it, as much as a gate says.

        Args:
            x: (B, T, C) embeddings.
            before: (B, 1) ids that came before them; None at the beginning.
        """
        first = mx.zeros_like(x[:, :1]) if before is None else self._embed(before)
        shifted = mx.concatenate([first, x[:, :-1]], axis=1)
        gate = mx.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))  # (B, T, 1)
        return self._mix(1, x, self.smear_lambda * gate, shifted)

    def _mix(self, a: mx.array | int, x: mx.array, b: mx.array, y: mx.array) -> mx.array:
        """a * x + b * y, in float32 as a and b are, then in the compute dtype again."""
        return (a * x + b * y).astype(self.dtype)
