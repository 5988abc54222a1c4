"""The shape of a network, and how one number, the depth, determines it.

The eras of nanochat's network, which its checkpoints do not name but can be told apart by.

Only the first, classic, and the last, modern, are trained from scratch here; models of all of them
can be run and trained on. Pure: no arrays.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlxchat.errors import CheckpointError

WINDOW_MULTIPLE = 128  # nanochat's attention kernel works in tiles of it
SMEAR_CHANNELS = 24  # of the embedding, that the smear's gate sees

Architecture = Literal["classic", "modern"]
"""Whose recipe and optimizer train a model: nanochat's of October 2025, or of July 2026."""

EraName = Literal["classic", "lambdas", "values", "gates_32", "gates_12", "modern"]


class Gate(NamedTuple):
    """How much of a value embedding is added to a head's values.

    Attributes:
        channels: of the normalised stream, that the gate sees.
        scale: the most that it lets through.
    """

    channels: int
    scale: float


class Era(NamedTuple):
    """What nanochat's network did at a time, as far as it has changed since.

    Attributes:
        qk_scale: of queries and of keys, after their norm.
        lambdas: scalars that each layer learns: by which it weights the stream and, added to it,
            the embedding, and its value embedding.
        value_embeddings: every how many layers, counted from the last, have an embedding of the
            token that is added to their values (https://arxiv.org/abs/2410.17897); 0: none.
        gate: of those.
        short_window: of a context length, how many positions before its own a token sees in the
            layers with short windows; None where there are no such layers.
        smear: whether there are smear and backout.
        softcaps: bounds of the logits; the first where a file cannot say which.
    """

    name: EraName
    arch: Architecture
    rope_base: float = 10_000.0
    qk_scale: float = 1.0
    lambdas: tuple[str, ...] = ()
    value_embeddings: int = 0
    gate: Gate | None = None
    short_window: Callable[[int], int] | None = None
    smear: bool = False
    softcaps: tuple[float, ...] = (15.0,)

    @property
    def marks(self) -> frozenset[str]:
        """The tensors that not all eras have."""
        marks = set(self.lambdas)
        if self.value_embeddings:
            marks.add("value_embeds")
        if self.gate:
            marks.add(_gates(self.gate.channels))
        if self.smear:
            marks |= {"smear_gate", "smear_lambda", "backout_lambda"}
        return frozenset(marks)


def _share(context: int, of: int) -> int:
    return -(-context // (of * WINDOW_MULTIPLE)) * WINDOW_MULTIPLE


# Each with the commit that it began with; what is not said is as it was before.
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
    smear=True,
)
ERAS: dict[EraName, Era] = {
    era.name: era for era in (CLASSIC, LAMBDAS, VALUES, GATES_32, GATES_12, MODERN)
}


def era_of(shapes: Mapping[str, tuple[int, ...]]) -> Era:
    """The era of a model with tensors of these names and shapes.

    Tensors that all eras have are not looked at.

    Raises:
        MlxchatError: they are of none; what the nearest one has, or has not, is named.
    """
    found = frozenset(_marks(shapes))
    nearest = min(reversed(ERAS.values()), key=lambda era: len(era.marks ^ found))
    if nearest.marks == found:
        return nearest
    faults = [f"{mark} missing" for mark in sorted(nearest.marks - found)]
    faults += [f"{mark} unexpected" for mark in sorted(found - nearest.marks)]
    raise CheckpointError(
        "These are tensors of no nanochat that is known; compared with those of the era "
        f"{nearest.name!r}: {', '.join(faults)}.",
        "Models of nanochat's main branch from October 2025 to July 2026 can be used, but for "
        "those of experiments that it undid (16 and 25 to 28 January 2026).",
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


ASPECT_RATIO = 64  # width per layer
HEAD_DIM = 128
VOCABULARY_MULTIPLE = 64  # of all eras but the first
LARGEST_SOFTCAP = 64.0  # e to this, summed over the largest vocabulary, is a float32

WINDOW_PATTERNS: dict[Architecture, str] = {"classic": "L", "modern": "SSSL"}


class GPTConfig(BaseModel):
    """The shape of a nanochat GPT: of the era of that name, or of another of the architecture's.

    Attention is multi-query when ``n_kv_head`` is smaller than ``n_head``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: Architecture = Field(
        "classic", description="whose recipe trains it: nanochat's of October 2025, or July 2026"
    )
    era: EraName = Field(
        default_factory=lambda given: given["arch"], description="whose network it is"
    )
    sequence_len: int = Field(2048, ge=1, le=2**20, description="context length in tokens")
    vocab_size: int = Field(65_536, ge=1, le=2**24, description="tokens in the vocabulary")
    n_layer: int = Field(12, ge=1, le=2**10, description="transformer blocks")
    n_head: int = Field(6, ge=1, le=2**10, description="query heads")
    n_kv_head: int = Field(6, ge=1, le=2**10, description="key and value heads")
    n_embd: int = Field(768, ge=2, le=2**16, description="width of the residual stream")
    window_pattern: str = Field(
        "L",
        pattern="^[SL]+$",
        description="reach of attention by layer, repeated: S a share of the context, L all",
    )
    vocab_multiple: int = Field(
        1,
        ge=1,
        le=2**16,
        description="embedding and head have rows up to the next multiple, unused",
    )
    softcap: float = Field(
        default_factory=lambda given: ERAS[given["era"]].softcaps[0],
        gt=0,
        le=LARGEST_SOFTCAP,
        description="bound of the logits",
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
        gate = self.traits.gate
        return {
            "the smear's gate": SMEAR_CHANNELS if self.traits.smear else 0,
            "the value embeddings' gate": gate.channels if gate else 0,
        }

    @property
    def traits(self) -> Era:
        """What networks of its era do."""
        return ERAS[self.era]

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_dim(self) -> int:
        """Width of keys, and of values, of all heads together."""
        return self.n_kv_head * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head; those beyond the vocabulary are never used."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def windows(self) -> tuple[int, ...]:
        """For each layer, how many positions before its own a token can attend to."""
        long = self.sequence_len
        short = self.traits.short_window(long) if self.traits.short_window else long
        reach = {"L": long, "S": min(short, long)}
        pattern = self.window_pattern
        *before, _ = (reach[pattern[i % len(pattern)]] for i in range(self.n_layer))
        return *before, long

    @property
    def backout_layer(self) -> int:
        """The layer in the middle, after which the residual stream is kept for the backout."""
        return self.n_layer // 2

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a layer adds an embedding of the token to its values."""
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
        """nanochat's rule: 64 of width per layer, one head per 128 of width, rounded up.

        The modern architecture rounds the width up too, to whole heads.
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
