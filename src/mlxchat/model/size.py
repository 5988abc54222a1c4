"""Parameters, floating-point operations and bytes: pure functions of the configuration."""

from typing import Literal

from mlxchat.model.block import QUERIES
from mlxchat.model.config import SMEAR_CHANNELS, GPTConfig
from mlxchat.model.loss import chunk_size

STACK = 2**26  # bytes that Muon orthogonalises at once, where one matrix has not more

# Arrays (B, T, C) that are held at a time, counted where nothing is computed ahead.
LAYER = 14  # a layer's for the backward pass: stream and norm twice, queries, keys, values ...
MLP_INPUT = 4  # on CPUs it is held too, see `elementary.relu_squared`
BLOCK = 30  # all that there is of a block when its MLP goes backward
ATTENTION = 10  # when its attention does, beside its scores, and their gradients (H, T, T)
MIXED, MIXED_FLOATS = 2, 1.5  # a layer's two streams mixed, values embedded; some in float32
STREAMS, STREAMS_FLOATS = 6, 4  # with those the embeddings, smear and backout
ENDS = 3  # after the last block: the stream, its norm and the gradient of that

CPU_LOGITS = 6  # float32 arrays of a chunk's logits; on GPUs one, and one of activations
STACKS = 4  # arrays of those that Muon orthogonalises
COMPUTED_AHEAD = 0.05  # of all: what follows is begun before memory is let go of

ScoresHeld = Literal["none", "windows", "all"]
"""Of which layers the scores of attention are held in training: where its kernel is not fused."""


def parameters(config: GPTConfig) -> dict[str, int]:
    """Return the number of parameters by group.

    The groups are ``wte``, ``lm_head`` and ``matrices`` (of all blocks together). All eras but the
    first also have ``value_embeds`` and ``scalars``, which include the smear's gate.
    """
    C, era = config.n_embd, config.traits
    block = 2 * C * C + 2 * C * config.kv_dim + 8 * C * C  # c_q and c_proj, c_k and c_v, MLP
    counts = {
        "wte": config.padded_vocab_size * C,
        "lm_head": config.padded_vocab_size * C,
        "matrices": config.n_layer * block,
    }
    if era.lambdas:
        mixing = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
        if era.gate:
            counts["matrices"] += mixing * config.n_kv_head * era.gate.channels
        counts["value_embeds"] = mixing * config.padded_vocab_size * config.kv_dim
        counts["scalars"] = len(era.lambdas) * config.n_layer
        if era.smear:
            counts["scalars"] += SMEAR_CHANNELS + 2  # the smear's scalar, and the backout's
    return counts


def scaling_parameters(config: GPTConfig) -> int:
    """Return the number of parameters in the matrices and the head, by which recipes scale."""
    counts = parameters(config)
    return counts["matrices"] + counts["lm_head"]


def flops_per_token(config: GPTConfig) -> int:
    """Return the floating-point operations of a forward and backward pass per token.

    nanochat counts them so, after PaLM (https://arxiv.org/abs/2204.02311).
    """
    gate = SMEAR_CHANNELS if config.traits.smear else 0
    attention = sum(12 * config.n_embd * window for window in config.windows)
    return 6 * (scaling_parameters(config) + gate) + attention


def activation_bytes(
    config: GPTConfig, value_bytes: int, scores_held: ScoresHeld, *, checkpoint: bool = False
) -> int:
    """Bytes that one sequence's activations take at most: when the last block goes backward.

    Args:
        value_bytes: of an activation.
        scores_held: of which layers attention's scores are held.
        checkpoint: whether a block's activations are computed again for its backward pass.
    """
    held = _held_bytes(config, value_bytes, scores_held, checkpoint)
    if not checkpoint:
        held.pop()  # counted with the rest of the last block
    block = BLOCK * _width_bytes(config, value_bytes)
    if scores := max(_scores(config, scores_held)) * config.n_head * value_bytes:
        attention = ATTENTION * _width_bytes(config, value_bytes)
        gradients = config.sequence_len**2 * config.n_head * value_bytes
        block = scores + max(block, attention + gradients)
    if config.traits.lambdas:
        block += _mixed_bytes(config, value_bytes, MIXED + STREAMS, MIXED_FLOATS + STREAMS_FLOATS)
    return sum(held) + block


def _held_bytes(
    config: GPTConfig, value_bytes: int, scores_held: ScoresHeld, checkpoint: bool
) -> list[int]:
    """What each block holds of one sequence from its forward to its backward pass."""
    width = _width_bytes(config, value_bytes)
    if checkpoint:
        return [width] * config.n_layer
    layer = (LAYER + MLP_INPUT * (scores_held == "all")) * width
    if config.traits.lambdas:
        layer += _mixed_bytes(config, value_bytes, MIXED, MIXED_FLOATS)
    scores = _scores(config, scores_held)
    return [layer + each * config.n_head * value_bytes for each in scores]


def _width_bytes(config: GPTConfig, value_bytes: int) -> int:
    return config.sequence_len * config.n_embd * value_bytes


def _mixed_bytes(config: GPTConfig, value_bytes: int, values: float, floats: float) -> int:
    """Of arrays (T, C): so many in the compute dtype, and some in float32 where that is another."""
    widths = values + (floats * 4 / value_bytes if value_bytes < 4 else 0)
    return round(widths * _width_bytes(config, value_bytes))


def _scores(config: GPTConfig, scores_held: ScoresHeld) -> list[int]:
    """Of one head's scores by layer, how many are held."""
    T = config.sequence_len
    if scores_held == "windows":
        return [T * T if window + 1 < T else 0 for window in config.windows]
    if scores_held == "none":
        return [0] * config.n_layer
    blocks = [(first, min(first + QUERIES, T)) for first in range(0, T, QUERIES)]
    return [
        sum((last - first) * (last - max(0, first - window)) for first, last in blocks)
        for window in config.windows
    ]


def training_bytes(
    config: GPTConfig,
    device_batch: int,
    accumulation: int,
    value_bytes: int,
    scores_held: ScoresHeld,
    loss_rows: int,
    *,
    checkpoint: bool = False,
) -> dict[str, int]:
    """Bytes that training takes by what holds them, and ``peak``, at most at one time; roughly.

    ``parameters`` and ``optimizer`` are held throughout, and so are ``gradients``, except those of
    a step's first micro-batch, which come to be from the last block to the first. One after the
    other,

    - the loss takes ``logits``, in further micro-batches ``accumulation`` for the gradient of the
      head on its way into the sum, and of ``activations`` those held by blocks;
    - the last block's backward pass takes ``activations``, gradients and casts of its matrices;
    - the optimizer's step takes ``update``.

    Args:
        device_batch: rows in a micro-batch.
        accumulation: micro-batches in a step.
        value_bytes: of an activation.
        scores_held: of which layers attention's scores are held.
        loss_rows: positions in a chunk of the loss at least.
        checkpoint: whether a block's activations are computed again for its backward pass.
    """
    counts = parameters(config)
    weights, head, matrices = (
        4 * n for n in (sum(counts.values()), counts["lm_head"], counts["matrices"])
    )
    optimizer = 2 * weights - matrices  # AdamW: two numbers for each; Muon: one
    if config.arch == "modern":
        optimizer += 4 * config.n_layer * 12 * config.n_embd  # and one a row or column

    casts = counts["matrices"] * value_bytes if value_bytes < 4 else 0
    block = counts["matrices"] * value_bytes // config.n_layer
    if checkpoint:
        block, casts = block + casts // config.n_layer, 0
    ends = ENDS * _width_bytes(config, value_bytes)
    held = sum(_held_bytes(config, value_bytes, scores_held, checkpoint), ends)
    held = device_batch * held + casts
    activations = (
        casts
        + block
        + device_batch * activation_bytes(config, value_bytes, scores_held, checkpoint=checkpoint)
    )
    logits = _logits_bytes(config, device_batch * config.sequence_len, value_bytes, loss_rows)
    update = max(head, STACKS * value_bytes * _largest_stack(config, value_bytes))

    first = max(head + max(held + logits, activations), weights + block)
    further = weights + max(head + held + logits, activations)
    working = max(first, weights + update, further if accumulation > 1 else 0)
    peak = round((1 + COMPUTED_AHEAD) * (weights + optimizer + working))
    return {
        "parameters": weights,
        "gradients": weights,
        "optimizer": optimizer,
        **({"accumulation": head} if accumulation > 1 else {}),
        "activations": activations,
        "logits": logits,
        "update": update,
        "peak": peak,
    }


def _largest_stack(config: GPTConfig, value_bytes: int) -> int:
    """Numbers that Muon orthogonalises at once."""
    square, mlp = config.n_embd**2, 4 * config.n_embd**2
    return max(
        min(max(STACK // (value_bytes * size), 1), count * config.n_layer) * size
        for size, count in ((square, 4), (mlp, 1))
    )


def _logits_bytes(config: GPTConfig, positions: int, value_bytes: int, loss_rows: int) -> int:
    """Of a chunk with what is computed from it, and of the head's products."""
    rows = config.padded_vocab_size
    chunk = rows * min(positions, chunk_size(positions, config.vocab_size, loss_rows))
    product = rows * config.n_embd * value_bytes  # a chunk's gradient of the head
    if value_bytes == 4:
        return max(CPU_LOGITS * 4 * chunk, product + 2 * 4 * chunk)
    cast = rows * config.n_embd * value_bytes
    return cast + max((4 + value_bytes) * chunk, product + value_bytes * chunk)
