"""The number of a model's parameters and floating-point operations: pure functions of its shape."""

from mlxchat.model.config import SMEAR_CHANNELS, GPTConfig

CHUNK_LOGITS = 2**21  # of the loss, where its chunks would else be smaller
MOST_CHUNKS = 64  # of the loss, since each adds to what is compiled
LARGEST_ARRAY = 2**31 - 1  # elements: MLX computes nonsense or dies beyond
STACK = 2**26  # bytes that Muon orthogonalises at once, where one matrix has not more
QUERIES = 256  # that attention takes at once on CPUs, with the keys that they can see


def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of parameters by group.

    ``wte``, ``lm_head``, ``matrices`` (all blocks together); all eras but the first have
    ``value_embeds`` and ``scalars`` (with the smear's gate) too.
    """
    C, era = config.n_embd, config.traits
    block = 2 * C * C + 2 * C * config.kv_dim + 8 * C * C  # c_q and c_proj, c_k and c_v, MLP
    counts = {
        "wte": config.rows * C,
        "lm_head": config.rows * C,
        "matrices": config.n_layer * block,
    }
    if era.lambdas:
        mixing = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
        if era.gate:
            counts["matrices"] += mixing * config.n_kv_head * era.gate.channels
        counts["value_embeds"] = mixing * config.rows * config.kv_dim
        counts["scalars"] = len(era.lambdas) * config.n_layer
        if era.smear:
            counts["scalars"] += SMEAR_CHANNELS + 2  # the smear's scalar, and the backout's
    return counts


def scaling_parameters(config: GPTConfig) -> int:
    """Those by which the modern recipe measures a model: the matrices and the head."""
    counts = parameters(config)
    return counts["matrices"] + counts["lm_head"]


def flops_per_token(config: GPTConfig) -> int:
    """Forward and backward, as nanochat counts them (https://arxiv.org/abs/2204.02311)."""
    gate = SMEAR_CHANNELS if config.traits.smear else 0
    attention = sum(12 * config.n_embd * window for window in config.windows)
    return 6 * (scaling_parameters(config) + gate) + attention


def chunk_rows(positions: int, vocab_size: int, least: int) -> int:
    """Positions in a chunk of the loss."""
    rows = max(least, CHUNK_LOGITS // vocab_size, -(-positions // MOST_CHUNKS))
    return min(rows, LARGEST_ARRAY // vocab_size)
