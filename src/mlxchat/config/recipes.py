"""Recipes: the numbers that models are trained with by default. Pure.

``classic`` and ``modern`` are nanochat's, for runs of hours to days on large GPUs. ``budget`` is
for what one machine can do in minutes to hours: `scale_for` derives size, context, vocabulary and
steps from the tokens that it can see in that time.
"""

import math
from typing import Literal, NamedTuple, get_args

from mlxchat.model.config import WINDOW_PATTERNS, Architecture

RecipeName = Literal["classic", "modern", "budget"]


class Recipe(NamedTuple):
    """The numbers that a model is trained with.

    Learning rates are those for a width of 768.
    """

    arch: Architecture
    vocabulary: int  # maximum number of tokens of a newly trained tokenizer
    window_pattern: str
    target_param_data_ratio: float  # classic: of all parameters; modern: of matrices and head
    total_batch_size: int | None  # tokens; None: derived from the horizon
    embedding_lr: float
    unembedding_lr: float
    matrix_lr: float
    scalar_lr: float | None  # None: there are no scalars
    weight_decay: float  # classic: of embedding and head; modern: of the matrices
    transferred: bool  # whether rates and decay are for 2^19 tokens a step and depth 12
    grad_clip: float  # 0: none
    warmup_steps: int
    warmdown_ratio: float
    final_lr_frac: float


CLASSIC_RECIPE = Recipe(
    arch="classic",
    vocabulary=65_536,
    window_pattern=WINDOW_PATTERNS["classic"],
    target_param_data_ratio=20.0,
    total_batch_size=524_288,
    embedding_lr=0.2,
    unembedding_lr=0.004,
    matrix_lr=0.02,
    scalar_lr=None,
    weight_decay=0.0,
    transferred=False,
    grad_clip=1.0,
    warmup_steps=0,
    warmdown_ratio=0.2,
    final_lr_frac=0.0,
)
MODERN_RECIPE = Recipe(
    arch="modern",
    vocabulary=32_768,
    window_pattern=WINDOW_PATTERNS["modern"],
    target_param_data_ratio=12.0,
    total_batch_size=None,
    embedding_lr=0.3,
    unembedding_lr=0.008,
    matrix_lr=0.02,
    scalar_lr=0.5,
    weight_decay=0.28,
    transferred=True,
    grad_clip=0.0,
    warmup_steps=40,
    warmdown_ratio=0.65,
    final_lr_frac=0.05,
)
# Scaled down with the batch, as nanochat's laws say, the rates are too low for batches of thousands
# of tokens. Windows save little in short rows.
BUDGET_RECIPE = MODERN_RECIPE._replace(
    window_pattern="L",
    weight_decay=0.1,
    transferred=False,
    warmup_steps=20,
    final_lr_frac=0.0,
)
RECIPES: dict[RecipeName, Recipe] = {
    "classic": CLASSIC_RECIPE,
    "modern": MODERN_RECIPE,
    "budget": BUDGET_RECIPE,
}
assert tuple(RECIPES) == get_args(RecipeName)


def recipe_for(name: RecipeName, arch: Architecture) -> Recipe:
    """Return a recipe's numbers for an architecture.

    Those of the budget recipe for classic models are classic's own, but for the vocabulary, the
    batch, and how long the rates rise and fall.

    Raises:
        ValueError: the recipe is nanochat's, for the other architecture.
    """
    recipe = RECIPES[name]
    if recipe.arch == arch:
        return recipe
    if name != "budget":
        raise ValueError(f"the recipe {name} is for {recipe.arch} models")
    return CLASSIC_RECIPE._replace(
        vocabulary=recipe.vocabulary,
        total_batch_size=None,
        warmup_steps=recipe.warmup_steps,
        warmdown_ratio=recipe.warmdown_ratio,
    )


# ==== The budget recipe ==========================================================================


class Scale(NamedTuple):
    """The model and the batch that learn most from a number of tokens.

    Attributes:
        parameters: of matrices and head, at most.
        vocabulary: tokens of a tokenizer that is trained for the run.
        context: tokens in a row.
        batch: tokens in an optimizer step.
        dropout: the share of numbers that are zeroed in training.
    """

    parameters: int
    vocabulary: int
    context: int
    batch: int
    dropout: float


class _Row(NamedTuple):
    below: float  # tokens
    vocabulary: int
    context: int


# Up to 10 million tokens as measured (docs/recipes.md); beyond, what the winners of contests of
# minutes to hours agree on, and from a billion on nanochat's.
_SCALES = (
    _Row(4e6, 4096, 256),
    _Row(1e7, 8192, 256),
    _Row(5e7, 8192, 512),
    _Row(3e8, 8192, 1024),
    _Row(6e8, 16_384, 1024),
    _Row(float("inf"), 32_768, 2048),
)
SMALL_MODEL = 14_000_000  # parameters: depth 6 with a vocabulary of 8,192 has 13.8 million
TOKENS_PER_PARAMETER = 12.0  # from which on a larger model learns more
FEW_STEPS, FEW_TOKENS = 1000, 8e6  # the steps for so many tokens and fewer
LEAST_BATCH = 4096  # tokens in a step; down to half as many where there would be fewer steps than
FEWEST_STEPS = 400
# Text that is read again and again is learned by heart, however large it is (docs/recipes.md).
MOST_EPOCHS = 8  # beyond which other text is predicted worse, even with dropout
PARAMETERS_PER_TOKEN = 3  # of the text, at most
FRESH_EPOCHS = 3  # read so often, text teaches as much as new text
DROPOUT, DROPOUT_EPOCHS = 0.3, 8  # the most, from so many epochs on


class Text(NamedTuple):
    """The amount of text that a run can read before it reads it again.

    Attributes:
        bytes: of an epoch, about; infinite where the text never ends or is not on disk.
        bytes_per_token: as the run's tokenizer was seen to need; None presumes English.
    """

    bytes: float = math.inf
    bytes_per_token: float | None = None

    def tokens(self, vocabulary: int) -> float:
        """Return about how many tokens of a vocabulary of that size an epoch has.

        What is presumed of English was measured on books, an encyclopedia and stories, with
        tokenizers trained on them: 2.1 bytes per token of a vocabulary of 512, 2.6 of 1,024, 3.1 of
        2,048, 3.6 of 4,096 and 4.0 of 8,192.

        >>> round(Text(1_000_000).tokens(2048))
        326797
        >>> Text(1_000_000, bytes_per_token=1.6).tokens(2048)
        625000.0
        """
        return self.bytes / (self.bytes_per_token or min(4.8, 0.46 * math.log2(vocabulary) - 2))


ENDLESS = Text()


def scale_for(tokens: float, text: float = math.inf) -> Scale:
    """Return what learns most from ``tokens``, read from a text of ``text`` tokens.

    A model gets at least one token for each parameter, and is no larger than `SMALL_MODEL` before
    it gets twelve: with less, the number of steps counts for more than the size. There are about
    a thousand steps; beyond 8 million tokens their number grows with the root of the tokens.

    >>> scale_for(3_500_000)
    Scale(parameters=3500000, vocabulary=4096, context=256, batch=4096, dropout=0.0)
    >>> scale_for(50_000_000).parameters, scale_for(1_200_000_000).parameters
    (14000000, 100000000)
    >>> scale_for(3_500_000, text=350_000).dropout
    0.3
    """
    row = next(row for row in _SCALES if tokens < row.below)
    parameters = max(min(tokens, SMALL_MODEL), tokens / TOKENS_PER_PARAMETER)
    parameters = min(parameters, PARAMETERS_PER_TOKEN * text)
    often = (tokens / text - FRESH_EPOCHS) / (DROPOUT_EPOCHS - FRESH_EPOCHS)
    steps = FEW_STEPS * max(1.0, tokens / FEW_TOKENS) ** 0.5
    least = min(LEAST_BATCH, max(LEAST_BATCH / 2, tokens / FEWEST_STEPS))
    return Scale(
        parameters=round(parameters),
        vocabulary=row.vocabulary,
        context=row.context,
        batch=round(max(least, tokens / steps)),
        dropout=DROPOUT * min(1.0, max(0.0, often)),
    )
