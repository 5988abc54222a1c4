"""The command `rl`."""

from typing import Annotated

from mlxchat.cli.adapters import Lora, with_adapter
from mlxchat.cli.layers import Layers
from mlxchat.cli.options import First, Fresh, Json, StayAwake, Supervise, Unset
from mlxchat.cli.ranks import Hosts, RankCount, RankSums, RankTimeout
from mlxchat.cli.stages import lead_from_source, say_how_to_talk
from mlxchat.config.lora import LoraTraining
from mlxchat.config.ranks import RANK_PATIENCE
from mlxchat.config.rl import RlConfig
from mlxchat.home import Home


def rl_command(
    config: Annotated[
        RlConfig,
        First("task", "level", "source", "reward", "num_iterations", "model_tag"),
        Unset({"lora"}),
    ],
    *,
    lora: Lora = False,
    adapter: LoraTraining,
    below: Layers,
    fresh: Fresh = False,
    supervise: Supervise = False,
    ranks: RankCount = 1,
    hosts: Hosts = None,
    rank_timeout: RankTimeout = RANK_PATIENCE,
    rank_sums: RankSums = "float32",
    stay_awake: StayAwake = True,
    json: Json = False,
) -> None:
    """Train a chat model with rewards for correct answers.

    For each question the model samples several answers, and those that score better than the others
    become more likely. This works when the model already answers 10 to 80% of the questions
    correctly; for --task arithmetic, spelling or counting, mlxchat finds a suitable level of
    difficulty. Watch the reward and pass@1, the fraction of held-out questions that a single answer
    gets right; pass@8 counts a question as solved if any of 8 answers is right.

    To use your own reward, write a function in a file: --reward rewards.py:brief with

        def brief(prompt, completion, answer): return -len(completion) / 1000

    To resume from the newest checkpoint, repeat the same command.
    """
    config = with_adapter(config, lora, adapter)
    from mlxchat.train.rl import Reinforcement, run_reinforcement, with_tuned_source

    settled = lead_from_source(
        Reinforcement,
        run_reinforcement,
        with_tuned_source,
        config,
        fresh=fresh,
        supervise=supervise,
        ranks=ranks,
        hosts=hosts,
        rank_timeout=rank_timeout,
        rank_sums=rank_sums,
        stay_awake=stay_awake,
        json=json,
    )
    if settled and not json:
        say_how_to_talk(Home.from_environment().run(settled.tag))
