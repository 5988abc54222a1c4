"""Training: the loop (`loop`), the sequence of a run (`run`), and a module for each stage."""

from mlxchat.train.mid import MidTraining
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.rl import Reinforcement
from mlxchat.train.sft import FineTuning
from mlxchat.train.stage import STAGES

STAGES.update(
    {stage.name: stage for stage in (Pretraining, MidTraining, FineTuning, Reinforcement)}
)
