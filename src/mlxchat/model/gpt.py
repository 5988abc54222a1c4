"""The GPT of nanochat on MLX, in every version from October 2025 to July 2026.

All versions have rotary embeddings, RMS norms without weights, normalised queries and keys, squared
ReLU, no biases, separate embedding and head matrices, and softly capped logits. Later versions add,
one after the other (`mlxchat.model.config` has the table):

- learned scalars per layer that mix the residual stream with the token embedding (lambdas),
- attention within a window in most layers,
- in some layers, a second embedding of the token that is added to the values,
- a share of the previous token's embedding in each token's own (smear), and at the end the
  subtraction of the residual stream as it was in the middle (backout).

Parameters have nanochat's names and are float32 in training. Activations are in the compute dtype,
the loss is in float32.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from mlxchat.model.adapter import LoraConfig
from mlxchat.model.block import Block, LayerCache
from mlxchat.model.config import SMEAR_CHANNELS, GPTConfig
from mlxchat.model.decoding import DecodeStep, read_position
from mlxchat.model.dropout import NO_DROPOUT, Dropout
from mlxchat.model.embedding import look_up
from mlxchat.model.linear import Linear
from mlxchat.model.lora_linear import LoraLinear, adapter_dropout
from mlxchat.model.loss import CHUNK_ROWS, cross_entropies, mean_cross_entropy, soft_cap
from mlxchat.model.norm import mix_and_norm, norm, norm_and_stream
from mlxchat.model.rope import Rope
from mlxchat.runtime import machine, mx, nn, tree_flatten

Arrays = dict[str, mx.array]


class Cache(Protocol):
    """The keys, values and other state that a model keeps of the positions it has read."""

    @property
    def offset(self) -> int | mx.array:
        """Positions read so far: one number, or (B,) when the sequences differ in length."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """The keys and values, one cache per layer."""

    def record(self, ids: mx.array) -> mx.array | None:
        """Record that (B, T) ids are read; return those before, (B, 1), or None at the start."""


class GPT(nn.Module):
    """The network.

    The constructor leaves the parameters arbitrary, to be loaded. `GPT.new` makes a model to train
    from scratch.

    >>> model = GPT.new(GPTConfig.from_depth(4, vocab_size=4096, sequence_len=512), seed=0)

    Args:
        config: the shape of the network.
        dtype: the dtype of the activations.

    Attributes:
        adapter: the adapter on the model, which alone is trained then (`mlxchat.model.lora`).
        decode_step: reads one position from buffers of fixed size, compiled; None unless
            `prepare_for_inference` has made it.
    """

    def __init__(self, config: GPTConfig, dtype: mx.Dtype = mx.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.adapter: LoraConfig | None = None
        self.decode_step: DecodeStep | None = None
        era, layers = config.traits, range(config.n_layer)
        self.transformer: dict[str, Any] = {
            "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
            "h": [Block(config, layer) for layer in layers],
        }
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size)
        for name in era.lambdas:
            self[name] = mx.ones(config.n_layer)
        if era.smear_and_backout:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_lambda = mx.zeros(1)
            self.backout_lambda = mx.zeros(1)
        if era.value_embeddings:
            self.value_embeds = [
                nn.Embedding(config.padded_vocab_size, config.kv_dim)
                if config.has_value_embedding(layer)
                else nn.Identity()  # has no parameters; the index stays the number of the layer
                for layer in layers
            ]

    @classmethod
    def new(cls, config: GPTConfig, seed: int = 0, dtype: mx.Dtype | None = None) -> "GPT":
        """Return a model with nanochat's initial parameters, drawn from ``seed``.

        Args:
            config: the shape of the network.
            seed: the same seed and shape give the same parameters.
            dtype: the dtype of the activations; by default the one that suits this machine.
        """
        model = cls(config, dtype or machine().compute_dtype)
        draw = _draw_classic if config.arch == "classic" else _draw_modern
        key, drawn = mx.random.key(seed), []
        for name, weight in sorted(model.named_parameters().items()):
            key, own = mx.random.split(key)
            drawn.append((name, draw(name, weight.shape, config.n_embd, own)))
        model.load_weights(drawn)
        mx.eval(model.parameters())
        return model

    # ==== Forward pass ====

    def __call__(self, ids: mx.array, cache: Cache | None = None) -> mx.array:
        """Return the logits of the next token at every position, (B, T, V) in float32.

        Args:
            ids: (B, T) integers.
            cache: the positions before ``ids``, extended by ``ids``.
        """
        return self.logits(self.features(ids, cache))

    def features(
        self, ids: mx.array, cache: Cache | None = None, dropout: Dropout = NO_DROPOUT
    ) -> mx.array:
        """Return what the head sees: the normalised residual stream after the last block.

        Args:
            ids: (B, T) integers.
            cache: the positions before ``ids``, extended by ``ids``.
            dropout: in training.

        Returns:
            (B, T, C) in the compute dtype.
        """
        offset = cache.offset if cache is not None else 0
        rope = Rope(self.config.traits.rope_base, offset)
        previous = cache.record(ids) if cache is not None else None  # (B, 1)
        caches = cache.layers if cache is not None else [None] * self.config.n_layer
        first, *rest = dropout.split(1 + self.config.n_layer)
        x = x0 = middle = self.embed(ids, previous, first)  # (B, T, C)
        layers = zip(self.lambdas(), caches, rest, strict=True)
        for i, (lambdas, layer_cache, drop) in enumerate(layers):
            x, x0 = self.layer(i, x, x0, lambdas, ids, rope, layer_cache, drop)  # (B, T, C)
            if i == self.config.backout_layer:
                middle = x
        return self.final_norm(x, middle)  # (B, T, C)

    def embed(
        self, ids: mx.array, previous: mx.array | None = None, dropout: Dropout = NO_DROPOUT
    ) -> mx.array:
        """Return the normalised embeddings that enter the first layer, (B, T, C).

        Args:
            ids: (B, T) integers.
            previous: (B, 1) ids that came just before them; None at the start.
            dropout: of the embeddings, in training.
        """
        x = self._token_embedding(ids, self._network_dropout(dropout))  # (B, T, C)
        if not self.config.traits.smear_and_backout:
            return x
        # Smear: add to each embedding a gated share of the one before it.
        first = mx.zeros_like(x[:, :1]) if previous is None else self._token_embedding(previous)
        one = x.shape[1] == 1  # an empty array behind it would cost a copy
        shifted = first if one else mx.concatenate([first, x[:, :-1]], axis=1)  # (B, T, C)
        gate = mx.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))  # (B, T, 1)
        return self._mix(1, x, self.smear_lambda * gate, shifted)

    def lambdas(self) -> list[Arrays]:
        """Return the learned scalars of each layer by name, (1,); the classic network has none."""
        n_layer, names = self.config.n_layer, self.config.traits.lambdas
        # Split at once: the gradient of each scalar by itself would be as long as them all.
        split = {name: mx.split(self[name], n_layer) for name in names}
        return [{name: split[name][i] for name in names} for i in range(n_layer)]

    def layer(
        self,
        i: int,
        x: mx.array,
        x0: mx.array,
        lambdas: Arrays,
        ids: mx.array,
        rope: Rope,
        cache: LayerCache | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> tuple[mx.array, mx.array]:
        """Return the residual stream after layer ``i``, and ``x0`` for the next one, (B, T, C).

        Args:
            i: the number of the layer.
            x: (B, T, C), the residual stream before it.
            x0: (B, T, C), the residual stream before the first layer.
            lambdas: the layer's learned scalars, see `lambdas`.
            ids: (B, T), for the value embedding.
            rope: the rotation of the T positions.
            cache: the layer's keys and values of earlier positions.
            dropout: of the value embedding and of what the layer adds to ``x``, in training.
        """
        drop_embedding, drop_block = self._network_dropout(dropout).split(2)
        if lambdas:
            a, b = lambdas["resid_lambdas"], lambdas["x0_lambdas"]
            normed, x0 = mix_and_norm(x, x0, a, b)
        else:
            normed = norm_and_stream(x)
        value_embedding = None
        if self.config.has_value_embedding(i):
            rows = self._rows(self.value_embeds[i], ids)  # (B, T, n_kv_head * D)
            value_embedding = drop_embedding(rows)
            if "v0_lambdas" in lambdas:
                value_embedding = (lambdas["v0_lambdas"] * value_embedding).astype(self.dtype)
        block: Block = self.transformer["h"][i]
        if self.adapter is None:
            return block(normed, rope, value_embedding, cache, drop_block), x0
        with adapter_dropout(block, dropout):
            return block(normed, rope, value_embedding, cache), x0

    def final_norm(self, x: mx.array, middle: mx.array) -> mx.array:
        """Normalise the last layer's residual stream, (B, T, C), for the head.

        Backout subtracts a share of ``middle`` first: the residual stream after the layer in the
        middle, (B, T, C).
        """
        if self.config.traits.smear_and_backout:
            x = self._mix(1, x, -self.backout_lambda, middle)
        return norm(x)

    def logits(self, x: mx.array) -> mx.array:
        """Map features, (..., C), to softly capped logits in float32, (..., V)."""
        logits = self.lm_head(x)[..., : self.config.vocab_size]  # the rows beyond are padding
        return soft_cap(logits, self.config.softcap)

    def _network_dropout(self, dropout: Dropout) -> Dropout:
        """Return the dropout of the network itself: none with an adapter, which has its own."""
        return dropout if self.adapter is None else NO_DROPOUT

    def _token_embedding(self, ids: mx.array, dropout: Dropout = NO_DROPOUT) -> mx.array:
        return norm(dropout(self._rows(self.transformer["wte"], ids)))  # (B, T, C)

    def _rows(self, embedding: nn.Module, ids: mx.array) -> mx.array:
        """Return an embedding's rows, in the compute dtype: (B, T) to (B, T, width)."""
        if isinstance(embedding, nn.Embedding):
            return look_up(embedding.weight, ids, self.dtype)
        rows: mx.array = embedding(ids)  # of quantized ones
        return rows.astype(self.dtype)

    def _mix(self, a: mx.array | int, x: mx.array, b: mx.array, y: mx.array) -> mx.array:
        """Return a * x + b * y, computed in float32 and rounded to the compute dtype."""
        return (a * x + b * y).astype(self.dtype)

    # ==== Loss ====

    def losses(self, ids: mx.array, targets: mx.array, chunk_rows: int = CHUNK_ROWS) -> mx.array:
        """Return the cross entropy at every position in nats, (B, T) in float32.

        Args:
            ids: (B, T) integers.
            targets: (B, T) integers; the loss is 0 where the target is -1.
            chunk_rows: the minimum number of positions whose logits are computed at a time.
        """
        config, flat = self.config, targets.reshape(-1)  # (B * T,)
        x = self.features(ids).reshape(-1, config.n_embd)  # (B * T, C)
        weight = self.lm_head.dense  # (V or more, C); losses of quantized models are measured too
        losses = cross_entropies(x, weight, flat, config.vocab_size, config.softcap, chunk_rows)
        return losses.reshape(targets.shape)  # (B, T)

    def loss(
        self,
        ids: mx.array,
        targets: mx.array,
        chunk_rows: int = CHUNK_ROWS,
        count: mx.array | None = None,
        dropout: Dropout = NO_DROPOUT,
        weights: mx.array | None = None,
    ) -> mx.array:
        """Return the mean of `losses` over the targets that are not -1, to be differentiated.

        `mlxchat.model.backward.ordered_loss` has the same value and takes less memory for sums of
        gradients.

        Args:
            ids, targets, chunk_rows: as for `losses`.
            count: divide by this instead, the number of targets in all micro-batches of a step.
            dropout: in training.
            weights: (B,), multiply the losses of each row by these; None for 1 each.
        """
        x = self.features(ids, dropout=dropout)  # (B, T, C)
        return self.mean_loss(x, targets, chunk_rows, count, weights)

    def mean_loss(
        self,
        x: mx.array,
        targets: mx.array,
        chunk_rows: int,
        count: mx.array | None,
        weights: mx.array | None = None,
    ) -> mx.array:
        """Return the mean loss of features ``x``, (B, T, C)."""
        config, head, flat = self.config, self.lm_head, targets.reshape(-1)  # (B * T,)
        if weights is not None:
            weights = mx.repeat(weights, targets.shape[1])  # (B * T,)
        x = x.reshape(-1, config.n_embd)  # (B * T, C)
        weight, frozen, added = head.dense, self.adapter is not None, None
        if isinstance(head, LoraLinear):
            # With DoRA the gradient passes through the whole weight.
            frozen = head.dora_scale is None
            if frozen:
                weight, added = head.linear.dense, (head.hidden(x), head.lora_b.T)
        return mean_cross_entropy(
            x,
            weight,
            flat,
            config.vocab_size,
            config.softcap,
            chunk_rows,
            count,
            weights,
            frozen=frozen,
            added=added,
        )

    # ==== Parameters ====

    def named_parameters(self) -> Arrays:
        """Return all parameters by nanochat's names: ``transformer.h.0.attn.c_q.weight``."""
        return dict(tree_flatten(self.parameters()))

    def named_trainable(self) -> Arrays:
        """Return the parameters that training changes: all, or those of the adapter alone."""
        return dict(tree_flatten(self.trainable_parameters()))

    @contextmanager
    def using(self, parameters: Arrays) -> Iterator[None]:
        """Compute with these parameters instead of the model's own inside a ``with`` block."""
        own = self.named_parameters()
        self.load_weights(list(parameters.items()), strict=False)
        try:
            yield
        finally:
            self.load_weights([(name, own[name]) for name in parameters], strict=False)

    def cast_matrices(self) -> None:
        """Store the matrices in the compute dtype, for faster inference. Training needs float32."""
        self._cast(self.named_parameters())

    def cast_frozen(self) -> None:
        """Store the matrices that are not trained in the compute dtype: they take less memory."""
        trained = self.named_trainable()
        self._cast({n: w for n, w in self.named_parameters().items() if n not in trained})

    def _cast(self, parameters: Arrays) -> None:
        matrices = {
            name: weight
            for name, weight in parameters.items()
            if weight.ndim > 1 and mx.issubdtype(weight.dtype, mx.floating)  # not quantized ones
        }
        self.load_weights([(n, w.astype(self.dtype)) for n, w in matrices.items()], strict=False)
        mx.eval(self.parameters())  # now, or both copies would live until the first token

    def prepare_for_inference(self, compiled: bool | None = None) -> None:
        """Rearrange the parameters for fast decoding. They can no longer be trained or saved.

        Args:
            compiled: whether to make `decode_step`. By default on GPUs: on CPUs MLX would need a
                C++ compiler on the user's machine.
        """
        for layer in self.modules():
            if isinstance(layer, LoraLinear):
                layer.cache_dora_scale()
        self.cast_matrices()
        for block in self.transformer["h"]:
            block.attn.fuse_qkv()
        mx.eval(self.parameters())
        if compiled is None:
            compiled = machine().backend != "cpu"
        if compiled:
            self.decode_step = mx.compile(partial(read_position, self))


# ==== Initial parameters ====


def _draw_classic(name: str, shape: tuple[int, ...], _width: int, key: mx.array) -> mx.array:
    """Draw a parameter as nanochat did in October 2025.

    The embedding is standard normal. The head and the matrices that write to the residual stream
    are zero. The others are normal with standard deviation min(1, sqrt(out / in)) / sqrt(in)
    (https://arxiv.org/abs/2310.17813).
    """
    if name == "lm_head.weight" or name.endswith("c_proj.weight"):
        return mx.zeros(shape)
    if name == "transformer.wte.weight":
        return mx.random.normal(shape, key=key)
    if name.split(".")[-2] not in ("c_q", "c_k", "c_v", "c_fc"):
        raise ValueError(f"no initial value is known for {name}")
    fan_out, fan_in = shape
    std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
    return mx.random.normal(shape, key=key) * std


def _draw_modern(name: str, shape: tuple[int, ...], width: int, key: mx.array) -> mx.array:
    """Draw a parameter as nanochat did in July 2026.

    The embedding and the head are normal, the other matrices uniform. The gates of the value
    embeddings begin slightly above neutral, the smear begins switched off. The scalars that weight
    the residual stream and the token embedding fall from the first layer to the last.
    """
    bound = math.sqrt(3 / width)  # gives a uniform distribution a deviation of 1 / sqrt(width)
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
        case "c_q" | "c_k" | "c_v":
            return mx.random.uniform(-bound, bound, shape, key=key)
        case "v0_lambdas":  # of an era between the two, which is only trained from scratch in tests
            return mx.random.uniform(-bound, bound, shape, key=key)
    if name.startswith("value_embeds."):
        return mx.random.uniform(-bound, bound, shape, key=key)
    raise ValueError(f"no initial value is known for {name}")
