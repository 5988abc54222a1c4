"""How weights may be quantized, and which layers of a network are. Pure: no arrays.

A group of neighbouring weights in a row shares a scale: in the affine mode, a floating-point number
and another one for the offset; in the others (https://arxiv.org/abs/2310.10537), one of 8 bits, and
the weights themselves are small floating-point numbers.
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
# What costs most, measured one kind of layers at a time on a model trained long (MEMORY.md).
SENSITIVE = {"attn.c_v": 3, "attn.c_proj": 2, "mlp.c_fc": 2}

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]


class Format(BaseModel):
    """How the weights of one layer are stored. The fields are MLX's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group_size: int
    bits: int
    mode: Mode = "affine"

    def __str__(self) -> str:
        if self.mode != "affine":
            return self.mode
        return f"{self.bits} bits, groups of {self.group_size}"


FLOATING: dict[Mode, Format] = {  # there is one size of each
    "mxfp4": Format(group_size=32, bits=4, mode="mxfp4"),
    "mxfp8": Format(group_size=32, bits=8, mode="mxfp8"),
    "nvfp4": Format(group_size=16, bits=4, mode="nvfp4"),
}


class Quantization(BaseModel):
    """What a model is quantized to. ``None`` means: what the mode has, or the default.

    Raises:
        MlxchatError: the mode has no such bits or groups.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="Quantization")

    bits: int | None = Field(
        None,
        description="Bits of a weight: 2, 3, 4, 5, 6 or 8. Default: 4, or what the mode has; 8 "
        "loses next to nothing, 3 and 2 lose much.",
    )
    group_size: int | None = Field(
        None,
        description="Weights that share a scale: 32, 64 or 128. Default: 64, or what the mode has.",
    )
    mode: Mode = Field(
        "affine",
        description="affine: whole numbers with a scale and an offset, any `bits`; mxfp4, mxfp8, "
        "nvfp4: small floating-point numbers, their bits and groups fixed.",
    )
    mixed: bool = Field(
        False,
        description="Give the layers whose errors cost most, those of values, attention's output "
        "and the MLP's input, more bits than `bits`: 8, 6 and 6 where the others have 4.",
    )

    @model_validator(mode="after")
    def _exists(self) -> "Quantization":
        if self.mode == "affine":
            _require_one_of(BITS, self.format.bits, "bits")
            _require_one_of(GROUP_SIZES, self.format.group_size, "group_size")
        for name in ("bits", "group_size"):
            given, has = getattr(self, name), getattr(self.format, name)
            if given not in (None, has):
                raise ConfigError(
                    f"`{name}={given}` does not go with `mode={self.mode}`, which has {has}.",
                    f"Leave out `{name}`, or use `mode=affine`.",
                )
        if self.mixed and (self.mode != "affine" or self.format.bits == BITS[-1]):
            other = f"`mode={self.mode}`" if self.mode != "affine" else f"`bits={BITS[-1]}`"
            raise ConfigError(
                f"`mixed` does not go with {other}, which has no more bits to give.",
                "Leave one of them out.",
            )
        return self

    @property
    def format(self) -> Format:
        """Of the layers that get no more than others."""
        if self.mode != "affine":
            return FLOATING[self.mode]
        return Format(
            group_size=self.group_size or DEFAULT_GROUP_SIZE, bits=self.bits or DEFAULT_BITS
        )

    @property
    def name(self) -> str:
        """``4bit``, ``4bit-g32``, ``4bit-mixed``, ``mxfp4``: for a folder."""
        if self.mode != "affine":
            return self.mode
        group_size = self.format.group_size
        groups = "" if group_size == DEFAULT_GROUP_SIZE else f"-g{group_size}"
        return f"{self.format.bits}bit{groups}{'-mixed' if self.mixed else ''}"

    def formats(self, config: GPTConfig) -> dict[str, Format]:
        """The format of each layer that is quantized, by its name.

        Raises:
            MlxchatError: a layer's rows are no whole number of groups.
        """
        least, layers = self.format, list(quantizable(config))
        for layer in layers:
            if layer.width % least.group_size:
                raise _indivisible(layer, least, layers)
        return {layer.name: self._format(layer.more if self.mixed else 0) for layer in layers}

    def _format(self, more: int) -> Format:
        """That of a layer that gets so many steps of `BITS` more than others."""
        if not more:
            return self.format
        bits = BITS[min(BITS.index(self.format.bits) + more, len(BITS) - 1)]
        return Format(group_size=self.format.group_size, bits=bits)


class Layer(NamedTuple):
    """A matrix that can be quantized."""

    name: str
    width: int  # of its rows
    more: int = 0  # steps of bits that a mixed quantization gives it beyond others


def quantizable(config: GPTConfig) -> Iterator[Layer]:
    """All matrices but the gates, which see a few channels only."""
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
    """The entry ``quantization`` of a config.json, as mlx-lm reads it.

    It holds the format that most layers have, and by name those of the others.
    """
    [(common, _)] = Counter(formats.values()).most_common(1)
    others = {name: f.model_dump() for name, f in formats.items() if f != common}
    return {**common.model_dump(), **others}


def from_config(entry: object) -> tuple[Format, dict[str, Format]]:
    """The inverse of `to_config`: the common format, and those of single layers by name.

    mlx-lm says of layers that are as they were ``false``; those are left out.

    Raises:
        ValueError: it is not of that form.
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
        f"The rows of {layer.name} have {layer.width} weights, which groups of "
        f"{format.group_size} do not divide.",
        f"Use {option}." if option else "Only widths that 32 divides can be quantized.",
    )
