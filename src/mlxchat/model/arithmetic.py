"""Parameters, floating-point operations and bytes: pure functions of the configuration."""

from mlxchat.model.config import GPTConfig


def parameters(config: GPTConfig) -> dict[str, int]:
    """Number of parameters by group: ``wte``, ``lm_head``, ``matrices`` (all blocks together)."""
    C, kv = config.n_embd, config.n_kv_head * config.head_dim
    block = 2 * C * C + 2 * C * kv + 8 * C * C  # queries and output, keys and values, MLP
    return {
        "wte": config.vocab_size * C,
        "lm_head": config.vocab_size * C,
        "matrices": config.n_layer * block,
    }


def flops_per_token(config: GPTConfig) -> int:
    """Forward and backward, as nanochat counts them (https://arxiv.org/abs/2204.02311)."""
    counts = parameters(config)
    attention = 12 * config.n_layer * config.n_embd * config.sequence_len
    return 6 * (counts["matrices"] + counts["lm_head"]) + attention


def activation_bytes(config: GPTConfig, value_bytes: int, fused_attention: bool) -> int:
    """Bytes that one sequence's activations hold until the backward pass, roughly.

    Per position and layer some 20 widths (norms, queries, keys, values, the MLP's hidden layer
    before and after its square) and, where attention is not fused, the scores of every head in
    float32.
    """
    T = config.sequence_len
    widths = 20 * config.n_embd * value_bytes
    scores = 0 if fused_attention else 3 * config.n_head * T * 4
    return T * config.n_layer * (widths + scores)
