"""The nanochat GPT on MLX, of every era from October 2025 to July 2026.

All have rotary embeddings (rotated by minus theta, halves paired), query and key normalised after
them, RMS norms without weights, squared ReLU, no biases, an untied embedding and head, and logits
capped softly. Later ones add, one after the other (`mlxchat.model.config` says which has what),

- before each layer the embedding once more, both streams weighted by learnt scalars,
- windows that most layers attend within,
- to the values of some layers an embedding of the token, by a learnt scalar or a gate,
- to each token's embedding a share of the one before it (smear), and at the end the subtraction of
  what the stream held in the middle (backout).

Parameters carry nanochat's names and are float32 in training; activations are in the compute dtype,
the loss in float32.

The parameters that training begins with, drawn from a key as nanochat distributes them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from mlxchat.model.backward import PLAIN, Arrays, Backward, Streams
from mlxchat.model.block import Block, LayerCache, Linear, Rotation, norm
from mlxchat.model.config import SMEAR_CHANNELS, GPTConfig
from mlxchat.model.loss import LOSS_ROWS, cross_entropies, mean_cross_entropy, soft_cap
from mlxchat.runtime import mx, nn, tree_flatten

HEAD = "lm_head.weight"
OF_LAYERS = ("transformer.h.", "value_embeds.")


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
        era, layers = config.traits, range(config.n_layer)
        self.transformer: dict[str, Any] = {
            "wte": nn.Embedding(config.rows, config.n_embd),
            "h": [Block(config, layer) for layer in layers],
        }
        self.lm_head = Linear(config.n_embd, config.rows)
        for name in era.lambdas:
            self[name] = mx.ones(config.n_layer)
        if era.smear:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_lambda = mx.zeros(1)
            self.backout_lambda = mx.zeros(1)
        if era.value_embeddings:
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

    def named_parameters(self) -> Arrays:
        """Every parameter by nanochat's name, such as ``transformer.h.0.attn.c_q.weight``."""
        return dict(tree_flatten(self.parameters()))

    @contextmanager
    def holding(self, parameters: Arrays) -> Iterator[None]:
        """Let these be the parameters of their names for a while."""
        named = self.named_parameters()
        self.load_weights(list(parameters.items()), strict=False)
        try:
            yield
        finally:
            self.load_weights([(name, named[name]) for name in parameters], strict=False)

    def cast_matrices(self) -> None:
        """Hold the matrices in the compute dtype from now on: to infer quickly, not to train."""
        matrices = {
            name: weight
            for name, weight in self.named_parameters().items()
            if weight.ndim > 1 and mx.issubdtype(weight.dtype, mx.floating)  # else: quantized
        }
        self.load_weights([(n, w.astype(self.dtype)) for n, w in matrices.items()], strict=False)
        mx.eval(self.parameters())  # else both copies are held until the first token

    def ready_to_infer(self) -> None:
        """Hold the parameters as decoding wants them from now on, not as training and saving do."""
        self.cast_matrices()
        for block in self.transformer["h"]:
            block.ready_to_infer()
        mx.eval(self.parameters())

    def features(
        self, ids: mx.array, cache: Cache | None = None, backward: Backward = PLAIN
    ) -> mx.array:
        """The normalised residual stream after the last block, (B, T, C) in the compute dtype.

        Args:
            ids: (B, T) integers.
            cache: what came before them; is extended by them.
            backward: how gradients are formed, where they are.
        """
        config, era = self.config, self.config.traits
        offset = cache.offset if cache is not None else 0
        if ids.shape[1] == 1:
            offset = mx.array(offset)  # a number would be compiled again for each position
        turn = Rotation(era.rope_base, offset)
        before = cache.read(ids) if cache is not None else None
        x = self._embed(ids)
        if era.smear:
            x = self._smear(x, before)
        caches = [None] * config.n_layer if cache is None else cache.layers
        x0 = middle = x
        for i, layer_cache in enumerate(caches):
            layer = partial(self._layer, i, ids, turn, layer_cache)
            streams = [x]
            if era.lambdas:
                streams += [x0, *(self[name][i] for name in era.lambdas)]
            if backward.in_any_order:
                x = layer(streams)
            else:
                streams, own = backward.enter(streams, self._parameters_of_layer(i))
                x = backward.call(layer, streams, own)
            if era.lambdas:
                x0 = streams[1]  # the same, in its place in the backward pass
            if i == config.n_layer // 2:
                middle = x
        if era.smear:
            x = self._mix(1, x, -self.backout_lambda, middle)
        return norm(x)

    def logits(self, x: mx.array) -> mx.array:
        """Softly capped logits in float32: (..., C) to (..., V)."""
        return soft_cap(self.lm_head(x)[..., : self.config.vocab_size], self.config.softcap)

    def losses(self, ids: mx.array, targets: mx.array, rows: int = LOSS_ROWS) -> mx.array:
        """Cross entropy in nats at every position, (B, T) float32; 0 where the target is -1.

        Args:
            ids, targets: (B, T) integers.
            rows: positions, at least, whose logits are computed at a time.
        """
        config, flat = self.config, targets.reshape(-1)
        x = self.features(ids).reshape(-1, config.n_embd)  # (N, C)
        weight = self.lm_head.dense
        losses = cross_entropies(x, weight, flat, config.vocab_size, config.softcap, rows)
        return losses.reshape(targets.shape)

    def loss(
        self,
        ids: mx.array,
        targets: mx.array,
        rows: int = LOSS_ROWS,
        backward: Backward = PLAIN,
        count: mx.array | None = None,
    ) -> mx.array:
        """The mean of `losses` where the target is not -1, for training.

        Args:
            count: of a micro-batch, such targets in the whole step, whose mean it is a share of.
        """
        config, flat = self.config, targets.reshape(-1)
        parameters = self.named_parameters()
        head = {HEAD: parameters.pop(HEAD)}
        others = {n: w for n, w in parameters.items() if not n.startswith(OF_LAYERS)}
        _, others = backward.enter([], others)
        with self.holding(others):
            x = self.features(ids, backward=backward).reshape(-1, config.n_embd)  # (N, C)
        [x], head = backward.enter([x], head)
        weight = head[HEAD]
        return mean_cross_entropy(x, weight, flat, config.vocab_size, config.softcap, rows, count)

    def _parameters_of_layer(self, i: int) -> Arrays:
        own = tuple(f"{prefix}{i}." for prefix in OF_LAYERS)
        return {n: w for n, w in self.named_parameters().items() if n.startswith(own)}

    def _layer(
        self,
        i: int,
        ids: mx.array,
        turn: Rotation,
        cache: LayerCache | None,
        streams: Streams,
        parameters: Arrays | None = None,
    ) -> mx.array:
        """The residual stream after layer i, (B, T, C).

        Args:
            streams: the residual stream before it, (B, T, C); where layers have lambdas also the
                embedding, and those of this layer.
            parameters: by name, in place of the layer's own.
        """
        if parameters is not None:
            with self.holding(parameters):
                return self._layer(i, ids, turn, cache, streams)
        x, *others = streams
        lambdas = dict(zip(self.config.traits.lambdas, others[1:], strict=True))
        if lambdas:
            x = self._mix(lambdas["resid_lambdas"], x, lambdas["x0_lambdas"], others[0])
        value_embedding = None
        if self.config.has_value_embedding(i):
            value_embedding = self.value_embeds[i](ids)
            if "v0_lambdas" in lambdas:
                value_embedding = lambdas["v0_lambdas"] * value_embedding
            value_embedding = value_embedding.astype(self.dtype)
        block: Block = self.transformer["h"][i]
        return block(x, turn, value_embedding, cache)

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


def initialise(model: GPT, key: mx.array) -> None:
    """Draw the initial parameters of ``model``, in place."""
    draw = _classic if model.config.arch == "classic" else _modern
    drawn = []
    for name, weight in sorted(model.named_parameters().items()):
        key, own = mx.random.split(key)
        drawn.append((name, draw(name, weight.shape, model.config.n_embd, own)))
    model.load_weights(drawn)
    mx.eval(model.parameters())


def _classic(name: str, shape: tuple[int, ...], _width: int, key: mx.array) -> mx.array:
    """Embedding standard normal; head and what writes to the residual stream zero; other matrices
    normal with standard deviation min(1, sqrt(out/in)) / sqrt(in) (https://arxiv.org/abs/2310.17813).
    """
    if name == "lm_head.weight" or name.endswith("c_proj.weight"):
        return mx.zeros(shape)
    if name == "transformer.wte.weight":
        return mx.random.normal(shape, key=key)
    fan_out, fan_in = shape
    std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
    return mx.random.normal(shape, key=key) * std


def _modern(name: str, shape: tuple[int, ...], width: int, key: mx.array) -> mx.array:
    """Embedding and head normal, other matrices uniform, the gates of value embeddings slightly
    above neutral, the smear off.

    The weights of the residual stream fall from the first layer to the last, as do those of the
    embedding that is added to it.
    """
    bound = math.sqrt(3 / width)  # of a uniform distribution whose deviation is 1 / sqrt(width)
    match name.removesuffix(".weight").split(".")[-1]:
        case "wte":
            return 0.8 * mx.random.normal(shape, key=key)
        case "lm_head":
            return 0.001 * mx.random.normal(shape, key=key)
        case "c_proj" | "smear_lambda":
            return mx.zeros(shape)
        case "c_fc":
            return mx.random.uniform(-0.4 * bound, 0.4 * bound, shape, key=key)
        case "ve_gate" | "smear_gate":
            return mx.random.uniform(0, 0.02, shape, key=key)
        case "resid_lambdas":
            return mx.linspace(1.15, 1.05, shape[0])
        case "x0_lambdas":
            return mx.linspace(0.20, 0.05, shape[0])
        case "backout_lambda":
            return mx.full(shape, 0.2)
    return mx.random.uniform(-bound, bound, shape, key=key)
