"""The formats of quantized weights, and which layers of a network are quantized. Pure: no arrays.

Neighbouring weights in a row form a group that shares a scale. In the affine mode the weights are
whole numbers, with a floating-point scale and offset per group. In the other modes the weights are
small floating-point numbers and the scale has 8 bits (https://arxiv.org/abs/2310.10537).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlxchat.errors import ConfigError, MlxchatError
from mlxchat.model.config import GPTConfig

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DEFAULT_BITS, DEFAULT_GROUP_SIZE = 4, 64
# Steps up in `BITS` for the layers whose errors cost most, measured one kind of layer at a time on
# a model that was trained for long (MEMORY.md).
SENSITIVE = {"attn.c_v": 3, "attn.c_proj": 2, "mlp.c_fc": 2}

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]


class Format(BaseModel):
    """The format in which the weights of one layer are stored. The fields are those of MLX."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group_size: int
    bits: int
    mode: Mode = "affine"

    def __str__(self) -> str:
        if self.mode != "affine":
            return self.mode
        return f"{self.bits} bits, groups of {self.group_size}"


FLOATING: dict[Mode, Format] = {  # each mode has one format
    "mxfp4": Format(group_size=32, bits=4, mode="mxfp4"),
    "mxfp8": Format(group_size=32, bits=8, mode="mxfp8"),
    "nvfp4": Format(group_size=16, bits=4, mode="nvfp4"),
}


class Quantization(BaseModel):
    """The way to quantize a model. ``None`` stands for the mode's own value, or the default.

    Raises:
        ConfigError: the mode has no such bits or groups.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="Quantization")

    bits: int | None = Field(
        None,
        description="Bits per weight: 2, 3, 4, 5, 6 or 8. 8 loses next to nothing; 3 and 2 "
        "lose a lot. Default: 4, or what the mode prescribes.",
    )
    group_size: int | None = Field(
        None,
        description="Weights that share one scale: 32, 64 or 128. Default: 64, or what the "
        "mode prescribes.",
    )
    mode: Mode = Field(
        "affine",
        description="affine: integers with a scale and an offset, at any `bits`; mxfp4, "
        "mxfp8, nvfp4: small floating-point formats with a fixed number of bits and group size.",
    )
    mixed: bool = Field(
        False,
        description="Use more than `bits` for the layers that suffer most from quantization "
        "(values, attention output and MLP input): 8, 6 and 6 bits where the others have 4.",
    )

    @model_validator(mode="after")
    def _possible(self) -> "Quantization":
        if self.mode == "affine":
            _require_one_of(BITS, self.format.bits, "bits")
            _require_one_of(GROUP_SIZES, self.format.group_size, "group_size")
        for name in ("bits", "group_size"):
            given, has = getattr(self, name), getattr(self.format, name)
            if given not in (None, has):
                raise ConfigError(
                    f"`{name}={given}` cannot be combined with `mode={self.mode}`, which has "
                    f"{has}.",
                    f"Leave out `{name}`, or use `mode=affine`.",
                )
        if self.mixed and (self.mode != "affine" or self.format.bits == BITS[-1]):
            other = f"`mode={self.mode}`" if self.mode != "affine" else f"`bits={BITS[-1]}`"
            raise ConfigError(
                f"`mixed` cannot be combined with {other}, which leaves no higher precision to "
                "use.",
                "Leave one of them out.",
            )
        return self

    @property
    def format(self) -> Format:
        """The format of the layers that a mixed quantization does not favour."""
        if self.mode != "affine":
            return FLOATING[self.mode]
        return Format(
            group_size=DEFAULT_GROUP_SIZE if self.group_size is None else self.group_size,
            bits=DEFAULT_BITS if self.bits is None else self.bits,
        )

    @property
    def name(self) -> str:
        """A name for folders: ``4bit``, ``4bit-g32``, ``4bit-mixed`` or ``mxfp4``."""
        if self.mode != "affine":
            return self.mode
        group_size = self.format.group_size
        groups = "" if group_size == DEFAULT_GROUP_SIZE else f"-g{group_size}"
        return f"{self.format.bits}bit{groups}{'-mixed' if self.mixed else ''}"

    def formats(self, config: GPTConfig) -> dict[str, Format]:
        """Return the format of each layer that is quantized, by the layer's name.

        Raises:
            ConfigError: the group size does not divide the rows of a layer.
        """
        least, layers = self.format, list(quantizable(config))
        for layer in layers:
            if layer.width % least.group_size:
                raise _indivisible(layer, least, layers)
        return {layer.name: self._format(layer.more if self.mixed else 0) for layer in layers}

    def _format(self, more: int) -> Format:
        """Return the format of a layer whose bits are ``more`` steps up in `BITS`."""
        if not more:
            return self.format
        bits = BITS[min(BITS.index(self.format.bits) + more, len(BITS) - 1)]
        return Format(group_size=self.format.group_size, bits=bits)


class Layer(NamedTuple):
    """A layer that can be quantized.

    Attributes:
        name: its name in the model, without ``.weight``.
        width: the length of its rows.
        more: how many steps up in `BITS` a mixed quantization gives it.
    """

    name: str
    width: int
    more: int = 0


def quantizable(config: GPTConfig) -> Iterator[Layer]:
    """Yield all layers with a matrix except the gates, whose rows are too short."""
    C = config.n_embd
    yield Layer("transformer.wte", C)
    for i in range(config.n_layer):
        for name in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc"):
            yield Layer(f"transformer.h.{i}.{name}", C, SENSITIVE.get(name, 0))
        yield Layer(f"transformer.h.{i}.mlp.c_proj", 4 * C)
        if config.has_value_embedding(i):
            yield Layer(f"value_embeds.{i}", config.kv_dim)
    yield Layer("lm_head", C)


def to_config(formats: Mapping[str, Format]) -> dict[str, Any]:
    """Return the entry ``quantization`` of a config.json, as mlx-lm reads it.

    It holds the format that most layers have, and those of the other layers by name.
    """
    [(common, _)] = Counter(formats.values()).most_common(1)
    others = {name: f.model_dump() for name, f in formats.items() if f != common}
    return {**common.model_dump(), **others}


def from_config(entry: object) -> tuple[Format, dict[str, Format]]:
    """Invert `to_config`: return the common format, and the formats of single layers by name.

    mlx-lm writes ``false`` for layers that are not quantized; those are ignored.

    Raises:
        ValueError: the entry does not have that form.
    """
    if not isinstance(entry, dict):
        raise ValueError("quantization is not a table")
    common = {name: value for name, value in entry.items() if name in Format.model_fields}
    others = {n: v for n, v in entry.items() if n not in common and not isinstance(v, bool)}
    return Format(**common), {name: Format.model_validate(v) for name, v in others.items()}


def _require_one_of(known: tuple[int, ...], given: int, option: str) -> None:
    if given not in known:
        *most, last = known
        listed = f"{', '.join(map(str, most))} or {last}"
        raise ConfigError(f"There is no quantization with `{option}={given}`.", f"Use {listed}.")


def _indivisible(layer: Layer, format: Format, layers: list[Layer]) -> MlxchatError:
    fitting = [size for size in GROUP_SIZES if not any(each.width % size for each in layers)]
    option = f"`group_size={fitting[-1]}`" if fitting else ""
    if option and format.mode != "affine":
        option = f"`mode=affine` {option}"
    return ConfigError(
        f"The rows of {layer.name} have {layer.width} weights, not a multiple of the group size "
        f"{format.group_size}.",
        f"Use {option}."
        if option
        else "Only models whose width is a multiple of 32 can be quantized.",
    )
