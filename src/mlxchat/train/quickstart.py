"""The settings of `mlxchat quickstart`: a small model that soon reads the built-in corpus."""

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.sources import BUILTIN

PRETRAINING = PretrainConfig(
    dataset=BUILTIN,
    model_tag="quickstart",
    depth=2,
    head_dim=64,  # two heads: with one, the model hardly learns to read
    max_seq_len=128,
    device_batch_size=16,
    total_batch_size=16 * 128,
    num_iterations=750,
    matrix_lr=0.01,
    embedding_lr=0.04,
    unembedding_lr=0.0033,
    warmdown_ratio=0.5,
    eval_every=375,
    eval_tokens=16 * 128 * 16,
    sample_every=0,
    save_every=375,
    keep=1,
)
TUNING = SftConfig(
    source=PRETRAINING.tag,
    data=[BUILTIN],
    device_batch_size=16,
    total_batch_size=16 * 128,
    num_iterations=100,
    eval_every=0,
    sample_every=0,
    save_every=50,
    keep=1,
)
