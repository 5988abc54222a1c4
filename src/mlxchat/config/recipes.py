"""The recipe of each architecture: the numbers it is trained with by default."""

from typing import NamedTuple

from mlxchat.model.config import WINDOW_PATTERNS, Architecture


class Recipe(NamedTuple):
    """The numbers that a model is trained with. The defaults are nanochat's.

    Learning rates are those for a width of 768, the modern ones also for a batch of 2^19 tokens.
    """

    vocabulary: int  # maximum number of tokens of a newly trained tokenizer
    window_pattern: str
    target_param_data_ratio: float  # classic: of all parameters; modern: of matrices and head
    total_batch_size: int | None  # tokens; None: derived from the horizon
    embedding_lr: float
    unembedding_lr: float
    matrix_lr: float
    scalar_lr: float | None  # None: there are no scalars
    weight_decay: float  # classic: of embedding and head; modern: of the matrices
    grad_clip: float  # 0: none
    warmup_steps: int
    warmdown_ratio: float
    final_lr_frac: float


CLASSIC_RECIPE = Recipe(
    vocabulary=65_536,
    window_pattern=WINDOW_PATTERNS["classic"],
    target_param_data_ratio=20.0,
    total_batch_size=524_288,
    embedding_lr=0.2,
    unembedding_lr=0.004,
    matrix_lr=0.02,
    scalar_lr=None,
    weight_decay=0.0,
    grad_clip=1.0,
    warmup_steps=0,
    warmdown_ratio=0.2,
    final_lr_frac=0.0,
)
MODERN_RECIPE = Recipe(
    vocabulary=32_768,
    window_pattern=WINDOW_PATTERNS["modern"],
    target_param_data_ratio=12.0,
    total_batch_size=None,
    embedding_lr=0.3,
    unembedding_lr=0.008,
    matrix_lr=0.02,
    scalar_lr=0.5,
    weight_decay=0.28,
    grad_clip=0.0,
    warmup_steps=40,
    warmdown_ratio=0.65,
    final_lr_frac=0.05,
)
RECIPES: dict[Architecture, Recipe] = {"classic": CLASSIC_RECIPE, "modern": MODERN_RECIPE}
