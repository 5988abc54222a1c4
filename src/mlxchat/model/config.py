"""The shape of a network, and how one number, the depth, determines it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ASPECT_RATIO = 64  # width per layer
HEAD_DIM = 128
WINDOW_MULTIPLE = 128  # nanochat's attention kernel works in tiles of it
VOCABULARY_MULTIPLE = 64  # of the modern architecture
GATE_CHANNELS = 12  # of the stream, that a value embedding's gate sees
SMEAR_CHANNELS = 24  # of the embedding, that the smear's gate sees

Architecture = Literal["classic", "modern"]

WINDOW_PATTERNS: dict[Architecture, str] = {"classic": "L", "modern": "SSSL"}


class GPTConfig(BaseModel):
    """The shape of a nanochat GPT: classic (commit dfc8833, October 2025) or modern (92d63d4, July
    2026).

    Attention is multi-query when ``n_kv_head`` is smaller than ``n_head``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: Architecture = Field("classic", description="nanochat's of October 2025, or July 2026")
    sequence_len: int = Field(2048, ge=1, description="context length in tokens")
    vocab_size: int = Field(65_536, ge=1, description="tokens in the vocabulary")
    n_layer: int = Field(12, ge=1, description="transformer blocks")
    n_head: int = Field(6, ge=1, description="query heads")
    n_kv_head: int = Field(6, ge=1, description="key and value heads")
    n_embd: int = Field(768, ge=2, description="width of the residual stream")
    window_pattern: str = Field(
        "L",
        pattern="^[SL]+$",
        description="reach of attention by layer, repeated: S a quarter of the context, L all",
    )
    vocab_multiple: int = Field(
        1, ge=1, description="embedding and head have rows up to the next multiple, unused"
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
        if self.arch == "classic" and "S" in self.window_pattern:
            raise ValueError("the classic architecture has no short windows")
        if self.arch == "modern" and self.n_embd < SMEAR_CHANNELS:
            raise ValueError(
                f"n_embd {self.n_embd} is less than the {SMEAR_CHANNELS} channels that the smear's "
                "gate sees"
            )
        return self

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
        short = -(-long // (4 * WINDOW_MULTIPLE)) * WINDOW_MULTIPLE
        reach = {"L": long, "S": min(short, long)}
        pattern = self.window_pattern
        *before, _ = (reach[pattern[i % len(pattern)]] for i in range(self.n_layer))
        return *before, long

    def has_value_embedding(self, layer: int) -> bool:
        """Every other layer has one in the modern architecture, the last among them."""
        return self.arch == "modern" and layer % 2 == (self.n_layer - 1) % 2

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
