"""The plan of reinforcement learning: what follows from the model, the questions and the memory."""

from mlxchat.config.recipes import RECIPES
from mlxchat.config.rl import RlConfig
from mlxchat.model.config import GPTConfig
from mlxchat.optim.schedule import REFERENCE_BATCH, learning_rates

MOMENTUM = 0.95  # of Muon, throughout


def rl_rates(config: RlConfig, model: GPTConfig) -> dict[str, float]:
    """Return the learning rates of the first step, by group, as nanochat's chat_rl sets them."""
    recipe = RECIPES[model.arch]._replace(
        embedding_lr=config.embedding_lr,
        unembedding_lr=config.unembedding_lr,
        matrix_lr=config.matrix_lr,
        transferred=False,
    )
    rates = learning_rates(recipe, model, REFERENCE_BATCH)
    return {group: config.init_lr_frac * rate for group, rate in rates.items()}
