"""nanochat's classic network in the tensors of `apertus`, an architecture of llama.cpp.

llama.cpp has no architecture called nanochat. Apertus (Swiss AI, 2025) computes the same but for
the soft cap of the logits, once its learned parts are set:

======================================  ==========================================================
nanochat                                apertus
======================================  ==========================================================
norm(wte[id])                           the rows of the embedding, each divided by its RMS already
norms without weights                   weights of one
rotary embedding by minus theta         by plus theta, with the second half of each head's rows of
                                        c_q and c_k negated: the pairs are mirrored
norm of queries and keys after it       before it; a rotation leaves the norm alone
relu(x)^2                               xIELU (arXiv:2411.13010) with its positive branch's square
                                        weighted by 1 and all else by 0 (`XIELU`)
rows that pad the vocabulary            cut off
======================================  ==========================================================

Source: src/models/apertus.cpp, ggml_xielu in ggml/src/ggml.c and op_xielu in
ggml/src/ggml-cpu/unary-ops.cpp of llama.cpp at 0c1e57098.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from mlxchat.interop.exporters.gguf_values import BLOCK_ROUNDING, Float32s
from mlxchat.interop.programs import GgufType
from mlxchat.model.gpt import GPT
from mlxchat.model.norm import norm
from mlxchat.runtime import mx, nn

# softplus(alpha_p) = 1 weights the square of positive x, softplus(alpha_n) = 0 the branch of
# negative x, and beta the linear part of both; eps is no more than must be there.
XIELU = {"alpha_p": math.log(math.e - 1), "alpha_n": -1000.0, "beta": 0.0, "eps": -1e-6}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: its name there.
        shape: its shape in numpy's order; GGUF lists dimensions in reverse.
        kind: how its values are stored.
        read: returns the values.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    read: Callable[[], Float32s]

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in the file, without padding."""
        values, size = GGML_QUANT_SIZES[self.kind]  # of a block
        return math.prod(self.shape) // int(values) * int(size)


def packs_blocks(quantize: GgufType) -> bool:
    """Return whether a type packs weights of a row into blocks, each with a scale."""
    return Kind[quantize.upper()] in BLOCK_ROUNDING


def gguf_tensors(model: GPT, quantize: GgufType) -> Iterator[GgufTensor]:
    """Yield the tensors of a classic model, whose layers may be quantized by MLX.

    Args:
        model: the model.
        quantize: the type of the matrices. The head is stored in 8 bits where that is one of 4 or 5
            bits, as llama.cpp's own quantizer gives it more bits than the rest; norms are F32.
    """
    config, kind = model.config, Kind[quantize.upper()]
    width, vocabulary = config.n_embd, config.vocab_size
    head = Kind.Q8_0 if packs_blocks(quantize) else kind

    def matrix(name: str, layer: nn.Module, shape: tuple[int, int]) -> GgufTensor:
        return GgufTensor(f"{name}.weight", shape, kind, lambda: _floats(_dense(layer)))

    def turned(name: str, layer: nn.Module, shape: tuple[int, int]) -> GgufTensor:
        return GgufTensor(
            f"{name}.weight",
            shape,
            kind,
            lambda: _mirrored(_floats(_dense(layer)), config.head_dim),
        )

    def ones(name: str, size: int) -> GgufTensor:
        return GgufTensor(
            f"{name}.weight",
            (size,),
            Kind.F32,
            lambda: np.ones(size, np.float32),
        )

    wte = model.transformer["wte"]
    table = (vocabulary, width)
    yield GgufTensor("token_embd.weight", table, kind, lambda: _normalised(wte, vocabulary))
    yield GgufTensor(
        "output.weight", table, head, lambda: _floats(model.lm_head.dense[:vocabulary])
    )
    yield ones("output_norm", width)
    for i, block in enumerate(model.transformer["h"]):
        attention, mlp, at = block.attn, block.mlp, f"blk.{i}"
        yield ones(f"{at}.attn_norm", width)
        yield turned(f"{at}.attn_q", attention.c_q, (width, width))
        yield turned(f"{at}.attn_k", attention.c_k, (config.kv_dim, width))
        yield matrix(f"{at}.attn_v", attention.c_v, (config.kv_dim, width))
        yield matrix(f"{at}.attn_output", attention.c_proj, (width, width))
        yield ones(f"{at}.attn_q_norm", config.head_dim)
        yield ones(f"{at}.attn_k_norm", config.head_dim)
        yield ones(f"{at}.ffn_norm", width)
        yield matrix(f"{at}.ffn_up", mlp.c_fc, (4 * width, width))
        yield matrix(f"{at}.ffn_down", mlp.c_proj, (width, 4 * width))


def _dense(layer: nn.Module) -> mx.array:
    """Return the weight of a linear layer or an embedding, dequantized if need be."""
    if isinstance(layer, nn.QuantizedEmbedding):
        return mx.dequantize(
            layer.weight,
            layer.scales,
            layer.get("biases"),
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
    weight: mx.array = layer.weight if isinstance(layer, nn.Embedding) else layer.dense
    return weight


def _floats(array: mx.array) -> Float32s:
    return np.array(array.astype(mx.float32))


def _normalised(embedding: nn.Module, rows: int) -> Float32s:
    """Return the first rows of an embedding, (rows, C), each divided by its RMS."""
    return _floats(norm(_dense(embedding)[:rows].astype(mx.float32)))


def _mirrored(weight: Float32s, head_dim: int) -> Float32s:
    """Negate the second half of each head's rows, so that rotary pairs turn the other way."""
    heads = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    signs = np.array([1, -1], np.float32)[:, None, None]
    return (heads * signs).reshape(weight.shape)
