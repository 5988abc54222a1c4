"""How nanochat lays out its checkpoints.

    base_checkpoints/d20/model_021400.pt meta_021400.json optim_021400_rank0.pt
    mid_checkpoints/...  chatsft_checkpoints/...  chatrl_checkpoints/...
    tokenizer/tokenizer.pkl token_bytes.pt

Source: nanochat/checkpoint_manager.py and scripts/tok_train.py at commits dfc8833 and 92d63d4.
"""

BASE = "base_checkpoints"
CHAT = "chatsft_checkpoints"
CONVERSATIONAL = (CHAT, "mid_checkpoints", "chatrl_checkpoints")  # trained on conversations

TOKENIZER_FOLDER = "tokenizer"  # beside the folders of checkpoints
TOKENIZER = "tokenizer.pkl"
TOKEN_BYTES = "token_bytes.pt"

FIELDS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
WINDOWS = "window_pattern"  # since the era that has short windows


def model_file(step: int) -> str:
    """The tensors of a step."""
    return f"model_{step:06d}.pt"


def meta_file(step: int) -> str:
    """What it is, as JSON."""
    return f"meta_{step:06d}.json"
