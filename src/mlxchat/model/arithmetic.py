"""Parameters, floating-point operations and bytes: pure functions of the configuration."""

from typing import Literal

from mlxchat.model.config import GATE_CHANNELS, SMEAR_CHANNELS, Architecture, GPTConfig

CHUNK_LOGITS = 2**21  # of the loss, where its chunks would else be smaller
MOST_CHUNKS = 64  # of the loss, since each adds to what is compiled
WIDTHS_HELD: dict[Architecture, tuple[int, int]] = {  # in the compute dtype, and in float32
    "classic": (20, 4),
    "modern": (21, 7),  # mixing streams by learnt scalars is done in float32
}
SCORES_HELD = 1.25  # arrays of them, one a head

ScoresHeld = Literal["none", "windows", "all"]
"""Of which layers the scores of attention are held in training: where its kernel is not fused."""


def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of parameters by group.

    ``wte``, ``lm_head``, ``matrices`` (all blocks together); the modern architecture has
    ``value_embeds`` and ``scalars`` (with the smear's gate) too.
    """
    C = config.n_embd
    block = 2 * C * C + 2 * C * config.kv_dim + 8 * C * C  # c_q and c_proj, c_k and c_v, MLP
    counts = {
        "wte": config.rows * C,
        "lm_head": config.rows * C,
        "matrices": config.n_layer * block,
    }
    if config.arch == "modern":
        mixing = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
        counts["matrices"] += mixing * config.n_kv_head * GATE_CHANNELS
        counts["value_embeds"] = mixing * config.rows * config.kv_dim
        counts["scalars"] = 2 * config.n_layer + SMEAR_CHANNELS + 2  # smear and backout
    return counts


def scaling_parameters(config: GPTConfig) -> int:
    """Those by which the modern recipe measures a model: the matrices and the head."""
    counts = parameters(config)
    return counts["matrices"] + counts["lm_head"]


def flops_per_token(config: GPTConfig) -> int:
    """Forward and backward, as nanochat counts them (https://arxiv.org/abs/2204.02311)."""
    gate = SMEAR_CHANNELS if config.arch == "modern" else 0
    attention = sum(12 * config.n_embd * window for window in config.windows)
    return 6 * (scaling_parameters(config) + gate) + attention


def activation_bytes(config: GPTConfig, value_bytes: int, scores_held: ScoresHeld) -> int:
    """Bytes that one sequence's activations hold until the backward pass, roughly.

    Per position and layer `WIDTHS_HELD`: norms, queries, keys, values, what attention made of them,
    the MLP's squares, and the gradients under way; with them the scores of every head, where they
    are held. Measured at depth 4 on a CPU; each layer of a deeper model takes somewhat less.
    """
    T, C = config.sequence_len, config.n_embd
    values, floats = WIDTHS_HELD[config.arch]
    widths = config.n_layer * C * (values * value_bytes + floats * 4)
    scores = round(SCORES_HELD * value_bytes * config.n_head * T)
    return T * (widths + scores * _layers_with_scores(config, scores_held))


def _layers_with_scores(config: GPTConfig, scores_held: ScoresHeld) -> int:
    if scores_held == "windows":
        return sum(window + 1 < config.sequence_len for window in config.windows)
    return config.n_layer if scores_held == "all" else 0


def training_bytes(
    config: GPTConfig,
    device_batch: int,
    accumulation: int,
    value_bytes: int,
    scores_held: ScoresHeld,
    loss_rows: int,
) -> dict[str, int]:
    """Bytes that training takes by what holds them, and ``peak``, at most at one time; roughly.

    ``parameters``, ``gradients`` and ``optimizer`` are held in float32 throughout. Either a
    micro-batch is computed, which takes ``activations`` (with the loss's logits) and, where
    gradients are summed over several, ``accumulation``; or the optimizer takes its step, which
    takes ``update``: all new values beside the old, and the matrices twice over.

    Args:
        device_batch: rows in a micro-batch.
        accumulation: micro-batches in a step.
        value_bytes: of an activation.
        scores_held: of which layers attention's scores are held.
        loss_rows: positions in a chunk of the loss at least.
    """
    counts = parameters(config)
    weights = 4 * sum(counts.values())
    matrices = 4 * counts["matrices"]
    optimizer = 2 * weights - matrices  # AdamW: two numbers for each; Muon: one
    if config.arch == "modern":
        optimizer += 4 * config.n_layer * 12 * config.n_embd  # and one a row or column
    cast = value_bytes * scaling_parameters(config) if value_bytes < 4 else 0
    rows = device_batch * activation_bytes(config, value_bytes, scores_held)
    activations = rows + cast + _loss_bytes(config, device_batch * config.sequence_len, loss_rows)
    held = {"parameters": weights, "gradients": weights, "optimizer": optimizer}
    working = {"accumulation": weights} if accumulation > 1 else {}
    working["activations"] = activations
    update = weights + optimizer + 2 * matrices
    peak = sum(held.values()) + max(sum(working.values()), update)
    return {**held, **working, "update": update, "peak": peak}


def chunk_rows(positions: int, vocab_size: int, least: int) -> int:
    """Positions in a chunk of the loss."""
    return max(least, CHUNK_LOGITS // vocab_size, -(-positions // MOST_CHUNKS))


def _loss_bytes(config: GPTConfig, positions: int, loss_rows: int) -> int:
    """Of a chunk of logits with what is computed from it, and of the head's gradient while it is
    summed.

    As many arrays as were measured on CPUs: MLX begins on what follows before it has let go.
    """
    at_once = min(positions, chunk_rows(positions, config.vocab_size, loss_rows))
    return 4 * config.rows * (10 * at_once + 2 * config.n_embd)
