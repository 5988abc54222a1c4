"""The values of a tensor as GGUF stores them, and whether stored ones are those of the model.

Source: gguf/quants.py of the package gguf 0.19, which quantizes as ggml's reference does.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from gguf import dequantize
from gguf import quantize as quantize_values

Float32s = npt.NDArray[np.float32]

BLOCK = 32  # values of a row that share a scale, in all block types here
ROUNDING = {  # the largest error of a value, as a share of its magnitude
    Kind.F32: 0.0,
    Kind.F16: 2.0**-11,
    Kind.BF16: 2.0**-8,
}
BLOCK_ROUNDING = {  # the same, as a share of the largest magnitude in its block
    Kind.Q8_0: 0.005,  # half a step of 1/127, and the rounding of the scale
    Kind.Q5_1: 0.035,  # half a step of 2/31
    Kind.Q5_0: 0.065,  # a step of 1/16: the far end of the range is cut off
    Kind.Q4_1: 0.07,  # half a step of 2/15
    Kind.Q4_0: 0.13,  # a step of 1/8
}
_SMALLEST = 4e-6  # below it the scales themselves, in float16, are rounded coarsely


def stored_values(values: Float32s, kind: Kind) -> npt.NDArray[Any]:
    """Return values, (..., n), as they are stored: numbers, or bytes where a block has a scale."""
    with np.errstate(over="ignore"):  # `holds` finds what became infinite
        stored: npt.NDArray[Any] = quantize_values(np.ascontiguousarray(values), kind)
    return stored


def holds(stored: npt.NDArray[Any], kind: Kind, values: Float32s) -> bool:
    """Return whether stored values are these, (..., n), as exactly as their type can be."""
    error = np.abs(dequantize(stored, kind).reshape(values.shape) - values)
    if kind in ROUNDING:
        smallest = 0.0 if kind is Kind.F32 else _SMALLEST
        return bool((error <= ROUNDING[kind] * np.abs(values) + smallest).all())
    largest = np.abs(values).reshape(-1, BLOCK).max(axis=1)
    bound = BLOCK_ROUNDING[kind] * largest + _SMALLEST
    return bool((error.reshape(-1, BLOCK) <= bound[:, None]).all())
