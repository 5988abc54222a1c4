"""Mid-training, as in nanochat's mid_train at commit dfc8833: conversations learned as text.

Before fine-tuning teaches it to answer, a base model sees many conversations, tasks and tool calls.
It learns the whole text of each conversation, including the questions, at pretraining's learning
rates. nanochat's mixture is SmolTalk, MMLU's auxiliary questions, GSM8K, identity conversations
(twice) and spelling, each weighted by its number of rows.
"""

from collections.abc import Callable, Iterator

from mlxchat.config.mid import MidConfig
from mlxchat.data.preparation import DIALOGUE
from mlxchat.home import Home
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event, Report
from mlxchat.telemetry.meter import Meter
from mlxchat.train.run import run
from mlxchat.train.sft import ConversationStage
from mlxchat.train.world import ALONE, World


def run_mid_training(
    config: MidConfig,
    home: Home,
    report: Report,
    meter: Meter | None = None,
    stop: Callable[[], bool] = lambda: False,
    fresh: bool = False,
    clock: Clock = SYSTEM_CLOCK,
    world: World = ALONE,
) -> Iterator[Event]:
    """Mid-train a model, or resume the run of that name; see `mlxchat.train.run.run`."""
    config = MidTraining.with_source(config, home)
    return run(MidTraining(config, home, report, clock, world=world), meter, stop, fresh)


class MidTraining(ConversationStage[MidConfig]):
    """The stage between pretraining and fine-tuning, which learns whole conversations."""

    name = "mid-training"
    settings = MidConfig
    after = ("pretraining",)
    prepared = DIALOGUE
