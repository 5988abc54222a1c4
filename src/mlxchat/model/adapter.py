"""The shape of an adapter, and which layers of a network it changes. Pure: no arrays.

An adapter leaves a model's weights alone and adds to chosen layers a product of two thin matrices
(LoRA, https://arxiv.org/abs/2106.09685), with DoRA also a new length for each row of the sum
(https://arxiv.org/abs/2402.09353). Names, shapes and the meaning of each number are mlx-lm's.
"""

import math
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlxchat.errors import ConfigError
from mlxchat.model.config import GPTConfig

Shape = tuple[int, ...]

ADAPTED = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
HEAD = "lm_head"


class LoraConfig(BaseModel):
    """An adapter: how large it is, and which layers it changes.

    Raises:
        ConfigError: a module's name is empty, or there is none, or one is named twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="Adapter")

    rank: int = Field(
        8,
        ge=1,
        le=2**12,
        description="Rank of the two matrices that the adapter adds to a layer. A higher rank "
        "can learn more and takes more memory.",
    )
    scale: float = Field(
        20.0,
        gt=0,
        le=1e4,
        description="Factor applied to what the adapter adds; other programs write it as "
        "alpha / rank.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout probability of the adapter's inputs.",
    )
    layers: int | None = Field(
        None,
        ge=1,
        le=2**10,
        description="Adapt only this many layers, counted from the last. Default: all.",
    )
    modules: tuple[str, ...] | None = Field(
        None,
        json_schema_extra={"metavar": "NAMES", "text": True},
        description="Comma-separated parts of each layer to adapt, such as attn.c_q,attn.c_v; "
        "lm_head is the head. Default: all matrices of the layers.",
    )
    dora: bool = Field(
        False,
        description="Also learn the length of each row of the adapted matrices (DoRA): "
        "slower, and often better at low ranks.",
    )

    @field_validator("modules", mode="before")
    @classmethod
    def _from_text(cls, modules: object) -> object:
        if isinstance(modules, str):
            return tuple(module.strip() for module in modules.split(","))
        return tuple(modules) if isinstance(modules, list) else modules  # JSON has no tuples

    @field_validator("modules")
    @classmethod
    def _require_distinct(cls, modules: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if modules is None:
            return None
        empty = not modules or not all(modules)
        if empty or len(set(modules)) < len(modules):
            raise ConfigError(
                "`modules` is empty, or contains an empty name."
                if empty
                else "`modules` names the same part twice.",
                "Name each part once, such as `modules=attn.c_q,attn.c_v`, or leave it out.",
            )
        return modules

    def __str__(self) -> str:
        return f"{'DoRA' if self.dora else 'LoRA'} of rank {self.rank}, scale {self.scale:g}"

    def with_head(self) -> "LoraConfig":
        """Return this adapter with the head among what it changes, unless modules are named."""
        if self.modules is not None:
            return self
        return self.model_copy(update={"modules": (*ADAPTED, HEAD)})

    def first_layer(self, config: GPTConfig) -> int:
        """Return the number of the first layer that the adapter may change."""
        return config.n_layer - (config.n_layer if self.layers is None else self.layers)


def adapted_layers(config: GPTConfig, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """Return the inputs and outputs of each layer that an adapter changes, by the layer's name.

    >>> config = GPTConfig.from_depth(2, vocab_size=64, sequence_len=8)
    >>> adapted_layers(config, LoraConfig(layers=1, modules=("attn.c_q", "mlp.c_fc")))
    {'transformer.h.1.attn.c_q': (128, 128), 'transformer.h.1.mlp.c_fc': (128, 512)}

    Raises:
        ConfigError: the model has fewer layers, or no part of that name in them.
    """
    if lora.layers is not None and lora.layers > config.n_layer:
        raise ConfigError(
            f"`layers={lora.layers}` is more than the {config.n_layer} layers of the model.",
            f"Use at most {config.n_layer}, or leave it out to adapt all of them.",
        )
    found, known = dict[str, tuple[int, int]](), dict[str, None]()
    for i in range(lora.first_layer(config), config.n_layer):
        for module, shape in _modules(config, i):
            known[module] = None
            chosen = module in (ADAPTED if lora.modules is None else lora.modules)
            if chosen:
                found[f"transformer.h.{i}.{module}"] = shape
    known[HEAD] = None
    if HEAD in (lora.modules or ()):
        found[HEAD] = (config.n_embd, config.padded_vocab_size)
    if unknown := [module for module in lora.modules or () if module not in known]:
        raise ConfigError(
            f"`modules` names {', '.join(ascii(name)[1:-1] for name in unknown)}, which the "
            "model does not have.",
            f"It has: {', '.join(known)}.",
        )
    return found


def module_of(layer: str) -> str:
    """Return the name of an adapted layer within its block; the head's is its own.

    >>> module_of("transformer.h.3.attn.c_q"), module_of("lm_head")
    ('attn.c_q', 'lm_head')
    """
    return layer if layer == HEAD else layer.split(".", 3)[3]


def _modules(config: GPTConfig, layer: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the linear parts of a layer, each with its inputs and outputs."""
    C, gate = config.n_embd, config.traits.gate
    yield "attn.c_q", (C, C)
    yield "attn.c_k", (C, config.kv_dim)
    yield "attn.c_v", (C, config.kv_dim)
    yield "attn.c_proj", (C, C)
    yield "mlp.c_fc", (C, 4 * C)
    yield "mlp.c_proj", (4 * C, C)
    if gate is not None and config.has_value_embedding(layer):
        yield "attn.ve_gate", (gate.channels, config.n_kv_head)


def adapter_shapes(config: GPTConfig, lora: LoraConfig) -> dict[str, Shape]:
    """Return the shape of each array of an adapter, by its name.

    Raises:
        ConfigError: as `adapted_layers`.
    """
    shapes: dict[str, Shape] = {}
    for name, (inputs, outputs) in adapted_layers(config, lora).items():
        shapes[f"{name}.lora_a"] = (inputs, lora.rank)
        shapes[f"{name}.lora_b"] = (lora.rank, outputs)
        if lora.dora:
            shapes[f"{name}.m"] = (outputs,)
    return shapes


def adapter_parameters(config: GPTConfig, lora: LoraConfig) -> int:
    """Return the number of an adapter's parameters."""
    return sum(map(math.prod, adapter_shapes(config, lora).values()))
