"""The shape of a network, and the eras of nanochat's architecture. Pure: no arrays.

`GPTConfig.from_depth` derives a whole shape from one number, the depth.

nanochat changed its network several times; each version is an `Era` here. Its checkpoints do not
name theirs, but their tensors tell (`era_of`). Models of every era can be run and fine-tuned; only
those of the first, classic, and the last, modern, are trained from scratch.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlxchat.errors import CheckpointError

WINDOW_MULTIPLE = 128  # the tile size of nanochat's attention kernel; short windows are multiples
NO_WINDOW = 2**30  # the window of a layer that sees all positions: no sequence has so many
SMEAR_CHANNELS = 24  # how many channels of the embedding the smear's gate sees

Architecture = Literal["classic", "modern"]
"""Which recipe and optimizer train a model: nanochat's of October 2025, or of July 2026."""

EraName = Literal["classic", "lambdas", "values", "gates_32", "gates_12", "modern"]


class Gate(NamedTuple):
    """A learned gate that scales a value embedding before it is added to a head's values.

    Attributes:
        channels: how many channels of the normalised residual stream the gate sees.
        scale: the largest factor.
    """

    channels: int
    scale: float


class Era(NamedTuple):
    """A version of nanochat's network: the traits in which the versions differ.

    Attributes:
        rope_base: the base of the rotary embeddings.
        qk_scale: the factor of queries and of keys after their norm.
        lambdas: the scalars that each layer learns, by name. They weight the residual stream
            (resid), the token embedding that is added to it (x0) and the value embedding (v0).
        value_embeddings: every n-th layer, counted from the last, adds an embedding of the token to
            its values (https://arxiv.org/abs/2410.17897); 0 means no layer does.
        gate: the gate of the value embeddings.
        short_window: maps the context length to how many positions before its own a token sees in
            layers with a short window; those with a long one see a context length. None if no
            layer has a window.
        smear_and_backout: whether the network has both; nanochat added them together.
        softcaps: the bounds of the logits that were in use; the first is the default.
    """

    name: EraName
    arch: Architecture
    rope_base: float = 10_000.0
    qk_scale: float = 1.0
    lambdas: tuple[str, ...] = ()
    value_embeddings: int = 0
    gate: Gate | None = None
    short_window: Callable[[int], int] | None = None
    smear_and_backout: bool = False
    softcaps: tuple[float, ...] = (15.0,)

    @property
    def marks(self) -> frozenset[str]:
        """Names of the tensors that this era has and others lack."""
        marks = set(self.lambdas)
        if self.value_embeddings:
            marks.add("value_embeds")
        if self.gate:
            marks.add(_gates(self.gate.channels))
        if self.smear_and_backout:
            marks |= {"smear_gate", "smear_lambda", "backout_lambda"}
        return frozenset(marks)


def _share(context: int, of: int) -> int:
    """Return 1 / ``of`` of the context, rounded up to a multiple of `WINDOW_MULTIPLE`."""
    return -(-context // (of * WINDOW_MULTIPLE)) * WINDOW_MULTIPLE


# Each era with the nanochat commit that began it, and what changed since the one before.
CLASSIC = Era("classic", "classic")  # 3a5e0bc, 13 October 2025
LAMBDAS = CLASSIC._replace(  # aa530cd, 11 January 2026; windows from fbc1484, the same day
    name="lambdas",
    arch="modern",
    lambdas=("resid_lambdas", "x0_lambdas"),
    short_window=lambda context: context // 2,
)
VALUES = LAMBDAS._replace(  # 9a88194, 16 January 2026, for two hours
    name="values",
    lambdas=(*LAMBDAS.lambdas, "v0_lambdas"),
    value_embeddings=1,
)
GATES_32 = LAMBDAS._replace(  # e85db6b, 16 January 2026; a softcap of 20 from aba30cb, 2 March
    name="gates_32",
    value_embeddings=2,
    gate=Gate(32, 2.0),
    softcaps=(15.0, 20.0),
)
GATES_12 = GATES_32._replace(  # 6ed7d1d, 9 March 2026
    name="gates_12",
    rope_base=100_000.0,
    qk_scale=1.15,
    gate=Gate(12, 3.0),
    short_window=lambda context: _share(context, of=3),
    softcaps=(15.0,),
)
MODERN = GATES_12._replace(  # a825e63, 14 March 2026, to 92d63d4, 3 July 2026
    name="modern",
    qk_scale=1.2,
    short_window=lambda context: _share(context, of=4),
    smear_and_backout=True,
)
ERAS: dict[EraName, Era] = {
    era.name: era for era in (CLASSIC, LAMBDAS, VALUES, GATES_32, GATES_12, MODERN)
}


def era_of(shapes: Mapping[str, tuple[int, ...]]) -> Era:
    """Return the era of a model, given the shapes of its tensors by name.

    Tensors that all eras have are ignored.

    Raises:
        CheckpointError: no era has these tensors. The message compares them with the closest era.
    """
    found = frozenset(_marks(shapes))
    nearest = min(reversed(ERAS.values()), key=lambda era: len(era.marks ^ found))
    if nearest.marks == found:
        return nearest
    faults = [f"{mark} missing" for mark in sorted(nearest.marks - found)]
    faults += [f"{mark} unexpected" for mark in sorted(found - nearest.marks)]
    raise CheckpointError(
        "No known version of nanochat has these tensors; compared with the era "
        f"{nearest.name!r}: {', '.join(faults)}.",
        "Use a model from nanochat's main branch between October 2025 and July 2026, except for "
        "the experiments that were reverted (16 and 25 to 28 January 2026).",
    )


def _marks(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in shapes.items():
        match name.split("."):
            case ["transformer", "h", _, "attn", "ve_gate", "weight"]:
                yield _gates(shape[-1] if shape else 0)
            case ["transformer" | "lm_head", *_]:
                pass
            case [first, *_]:
                yield first


def _gates(channels: int) -> str:
    return f"ve_gate of {channels} channels"


ASPECT_RATIO = 64  # width of the residual stream per layer
HEAD_DIM = 128
VOCABULARY_MULTIPLE = 64  # all eras but the first pad the vocabulary to a multiple
LARGEST_SOFTCAP = 64.0  # exp of it, summed over the largest vocabulary, still fits a float32

WINDOW_PATTERNS: dict[Architecture, str] = {"classic": "L", "modern": "SSSL"}


class GPTConfig(BaseModel):
    """The shape of a nanochat GPT.

    Attention is grouped-query if ``n_kv_head`` is smaller than ``n_head``. The era is the one named
    like the architecture unless another one is given.

    >>> GPTConfig.from_depth(12, vocab_size=65_536, sequence_len=2048).n_embd
    768
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: Architecture = Field(
        "classic", description="the recipe that trains it: nanochat's of October 2025 or July 2026"
    )
    era: EraName = Field(
        default_factory=lambda given: given["arch"], description="the version of nanochat's network"
    )
    sequence_len: int = Field(2048, ge=1, le=2**20, description="context length in tokens")
    vocab_size: int = Field(
        65_536, ge=1, le=2**24, description="number of tokens in the vocabulary"
    )
    n_layer: int = Field(12, ge=1, le=2**10, description="number of transformer blocks")
    n_head: int = Field(6, ge=1, le=2**10, description="number of query heads")
    n_kv_head: int = Field(6, ge=1, le=2**10, description="number of key and value heads")
    n_embd: int = Field(768, ge=2, le=2**16, description="width of the residual stream")
    window_pattern: str = Field(
        "L",
        pattern="^[SL]+$",
        description="window of each layer, repeated: S is a share of the context, L all of it",
    )
    vocab_multiple: int = Field(
        1,
        ge=1,
        le=2**16,
        description="embedding and head are padded with unused rows to a multiple of this",
    )
    softcap: float = Field(
        default_factory=lambda given: ERAS[given["era"]].softcaps[0],
        gt=0,
        le=LARGEST_SOFTCAP,
        description="bound of the logits (soft cap)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "GPTConfig":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head dimension {self.head_dim} is odd; rotary pairs need it even")
        if self.arch != self.traits.arch:
            raise ValueError(f"the era {self.era} is trained as {self.traits.arch}")
        if self.traits.short_window is None and "S" in self.window_pattern:
            raise ValueError(f"the {self.era} architecture has no short windows")
        for gate, channels in self._channels().items():
            if self.n_embd < channels:
                raise ValueError(
                    f"n_embd {self.n_embd} is less than the {channels} channels that {gate} sees"
                )
        return self

    def _channels(self) -> dict[str, int]:
        """Return how many channels of the residual stream each gate sees."""
        gate = self.traits.gate
        return {
            "the smear's gate": SMEAR_CHANNELS if self.traits.smear_and_backout else 0,
            "the value embeddings' gate": gate.channels if gate else 0,
        }

    @property
    def traits(self) -> Era:
        """The traits of its era."""
        return ERAS[self.era]

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_dim(self) -> int:
        """Width of the keys of all heads together, and of the values."""
        return self.n_kv_head * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head; those beyond the vocabulary are never used."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def windows(self) -> tuple[int, ...]:
        """The number of positions before its own that a token can attend to, for each layer.

        A sequence may be longer than the context. There, and in small contexts, where the short
        window is the longer one, these windows are nanochat's too.
        """
        if self.traits.short_window is None:
            return (NO_WINDOW,) * self.n_layer
        long = self.sequence_len
        reach = {"L": long, "S": self.traits.short_window(long)}
        pattern = self.window_pattern
        *before, _ = (reach[pattern[i % len(pattern)]] for i in range(self.n_layer))
        return *before, long

    @property
    def backout_layer(self) -> int:
        """The layer in the middle, after which the residual stream is kept for the backout."""
        return self.n_layer // 2

    def has_value_embedding(self, layer: int) -> bool:
        """Return whether a layer adds an embedding of the token to its values."""
        every = self.traits.value_embeddings
        return every > 0 and (self.n_layer - 1 - layer) % every == 0

    @classmethod
    def from_depth(
        cls,
        depth: int,
        vocab_size: int,
        sequence_len: int,
        head_dim: int = HEAD_DIM,
        arch: Architecture = "classic",
        window_pattern: str | None = None,
    ) -> "GPTConfig":
        """Derive the shape from the depth by nanochat's rule.

        The width is 64 per layer, with one head per 128 of width, rounded up. The modern
        architecture rounds the width up to whole heads too.

        Args:
            depth: number of transformer blocks.
            vocab_size: number of tokens in the vocabulary.
            sequence_len: context length in tokens.
            head_dim: width of a head.
            arch: the architecture.
            window_pattern: see the field; by default the architecture's own.
        """
        width = depth * ASPECT_RATIO
        heads = -(-width // head_dim)
        modern = arch == "modern"
        return cls(
            arch=arch,
            sequence_len=sequence_len,
            vocab_size=vocab_size,
            n_layer=depth,
            n_head=heads,
            n_kv_head=heads,
            n_embd=heads * head_dim if modern else width,
            window_pattern=window_pattern or WINDOW_PATTERNS[arch],
            vocab_multiple=VOCABULARY_MULTIPLE if modern else 1,
        )
