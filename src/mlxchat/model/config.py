"""The shape of a network, and how one number, the depth, determines it."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlxchat.model.eras import ERAS, SMEAR_CHANNELS, Era, EraName
from mlxchat.model.eras import Architecture as Architecture

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
    def rows(self) -> int:
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
