"""The size of a model and of what it computes at once: pure functions of its shape, without MLX.

The network and its optimizer compute in blocks of these sizes, and the memory plan counts on them.
"""

from mlxchat.model.config import SMEAR_CHANNELS, GPTConfig

STACK = 2**26  # bytes that Muon orthogonalises at once, unless a single matrix is larger
QUERY_BLOCK = 256  # queries that attention takes at a time where it has no fused kernel
CACHE_STEP = 256  # positions in the smallest buffers of keys and values
CUDA_QUERY_BLOCK = 512  # the least where a fused kernel would compute what a window hides
CHUNK_LOGITS = 2**21  # the minimum of logits per chunk: small vocabularies take more positions
MOST_CHUNKS = 64  # the maximum number of chunks: each makes the compiled graph larger
LARGEST_ARRAY = 2**31 - 1  # elements of an array: beyond it MLX computes nonsense, or crashes


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
        if era.smear_and_backout:
            counts["scalars"] += SMEAR_CHANNELS + 2  # the smear's scalar, and the backout's
    return counts


def scaling_parameters(config: GPTConfig) -> int:
    """Return the number of parameters in the matrices and the head, by which recipes scale."""
    counts = parameters(config)
    return counts["matrices"] + counts["lm_head"]


def query_block(backend: str, queries: int, keys: int, window: int) -> int:
    """Return how many queries attention takes at a time, each with the keys that one of them sees.

    CPUs have no fused kernel, and Metal has none for the gradient of windows: in blocks they hold
    fewer scores, and compute fewer. cuDNN has one for both, which computes all scores.

    >>> query_block("metal", 2048, 2048, window=2048), query_block("metal", 2048, 2048, window=512)
    (2048, 256)
    """
    if backend == "cuda":
        block = max(CUDA_QUERY_BLOCK, window) if window <= keys // 2 else queries
    else:
        block = queries if backend == "metal" and window + 1 >= keys else QUERY_BLOCK
    return min(block, queries)


def flops_per_token(config: GPTConfig, frozen: bool = False) -> int:
    """Return the floating-point operations of a forward and backward pass per token.

    nanochat counts them so, after PaLM (https://arxiv.org/abs/2204.02311). A third of those with
    the matrices are left out if they are ``frozen``: the products that give their own gradients.
    """
    gate = SMEAR_CHANNELS if config.traits.smear_and_backout else 0
    seen = sum(min(window, config.sequence_len) for window in config.windows)
    attention = 12 * config.n_embd * seen
    return (4 if frozen else 6) * (scaling_parameters(config) + gate) + attention


def chunk_size(positions: int, vocab_size: int, chunk_rows: int) -> int:
    """Return how many of the positions each chunk of the loss takes.

    They are at least ``chunk_rows`` if so many fit.
    """
    rows = max(chunk_rows, CHUNK_LOGITS // vocab_size, -(-positions // MOST_CHUNKS))
    return min(rows, LARGEST_ARRAY // vocab_size)


def cache_capacity(positions: int) -> int:
    """Return the size of a cache's buffers for so many positions.

    >>> cache_capacity(85), cache_capacity(257), cache_capacity(600)
    (256, 512, 1024)
    """
    return CACHE_STEP << ((positions - 1) // CACHE_STEP).bit_length()
