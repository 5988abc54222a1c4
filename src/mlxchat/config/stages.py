"""The settings of each stage of training, by the stage's name. Pure: quick to import."""

from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import SftConfig

STAGE_SETTINGS: dict[str, type[RunConfig]] = {
    "pretraining": PretrainConfig,
    "mid-training": MidConfig,
    "fine-tuning": SftConfig,
    "reinforcement learning": RlConfig,
}
COMMAND_OF_STAGE = {  # the command that runs each stage
    "pretraining": "train",
    "mid-training": "mid",
    "fine-tuning": "sft",
    "reinforcement learning": "rl",
}
