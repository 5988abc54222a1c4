"""The shape of a network, and how one number, the depth, determines it."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

ASPECT_RATIO = 64  # width per layer
HEAD_DIM = 128


class GPTConfig(BaseModel):
    """The shape of a classic nanochat GPT (commit dfc8833, October 2025).

    Attention is multi-query when ``n_kv_head`` is smaller than ``n_head``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_len: int = Field(2048, ge=1, description="context length in tokens")
    vocab_size: int = Field(65_536, ge=1, description="tokens in the vocabulary")
    n_layer: int = Field(12, ge=1, description="transformer blocks")
    n_head: int = Field(6, ge=1, description="query heads")
    n_kv_head: int = Field(6, ge=1, description="key and value heads")
    n_embd: int = Field(768, ge=2, description="width of the residual stream")

    @model_validator(mode="after")
    def _heads_fit(self) -> "GPTConfig":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head dimension {self.head_dim} is odd; rotary pairs need it even")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @classmethod
    def from_depth(
        cls, depth: int, vocab_size: int, sequence_len: int, head_dim: int = HEAD_DIM
    ) -> "GPTConfig":
        """nanochat's rule: 64 of width per layer, one head per 128 of width, rounded up."""
        width = depth * ASPECT_RATIO
        heads = -(-width // head_dim)
        return cls(
            sequence_len=sequence_len,
            vocab_size=vocab_size,
            n_layer=depth,
            n_head=heads,
            n_kv_head=heads,
            n_embd=width,
        )
