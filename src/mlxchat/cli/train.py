"""The commands `train`, `mid`, `sft`, `info` and `tokenizer train`."""

import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat.cli.adapters import Lora, with_adapter
from mlxchat.cli.info import saved_folder, saved_run, show_model
from mlxchat.cli.layers import Layers
from mlxchat.cli.options import First, Fresh, Json, StayAwake, Supervise, Unset, Without
from mlxchat.cli.questions import agreed, can_ask
from mlxchat.cli.ranks import (
    Hosts,
    RankCount,
    RankSums,
    RankTimeout,
    follow_run,
    joined,
    launch_if_asked,
)
from mlxchat.cli.session import exit_promptly
from mlxchat.cli.stages import lead, lead_from_source, say_how_to_talk, supervise_this
from mlxchat.config.lora import LoraTraining
from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import MAX_CHARACTERS, DataConfig, PretrainConfig
from mlxchat.config.ranks import RANK_PATIENCE
from mlxchat.config.run import RunConfig
from mlxchat.config.sft import SftConfig
from mlxchat.errors import command
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted
from mlxchat.telemetry.trackers import require_tracker
from mlxchat.ui.console import Screen, say, say_json
from mlxchat.ui.tables import about
from mlxchat.ui.text import as_options

if TYPE_CHECKING:
    from mlxchat.train.resume import SavedRun
    from mlxchat.train.world import World

DAY = 86_400  # seconds


def train_command(
    config: Annotated[
        PretrainConfig,
        First("depth", "budget", "dataset", "model_tag", "memory_limit"),
        Unset({"lora"}),
    ],
    *,
    lora: Lora = False,
    adapter: Annotated[LoraTraining, Unset({"dropout"})],
    below: Layers,
    fresh: Fresh = False,
    supervise: Supervise = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan of the run without training.")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Do not ask for confirmation before a run that takes more than a day."
        ),
    ] = False,
    ranks: RankCount = 1,
    hosts: Hosts = None,
    rank_timeout: RankTimeout = RANK_PATIENCE,
    rank_sums: RankSums = "float32",
    stay_awake: StayAwake = True,
    json: Json = False,
) -> None:
    """Train a model, or resume an interrupted run.

    Give --depth to choose the model's size, or --budget to get the model that learns most in the
    time you have. To resume from the newest checkpoint, repeat the same command, or name the run
    with --resume.
    """
    config = with_adapter(config, lora, adapter)
    if supervise and dry_run:
        raise typer.BadParameter("--supervise cannot be combined with --dry-run.")
    if supervise:
        supervise_this(Home.from_environment().runs / config.tag, fresh, stay_awake, json)
    launch_if_asked(ranks, hosts, rank_timeout, config.streaming)
    home = Home.from_environment()
    from mlxchat.train.pretrain import Pretraining, run_pretraining

    world = joined(config, rank_timeout, rank_sums)
    if not world.leads:
        follow_run(Pretraining, config, world, stay_awake)
        return
    if dry_run:
        _dry_run(config, below, home, world, fresh, json)
        return
    if not (json or config.budget):
        _say_how_long(config, home, world, fresh, yes)
    lead(run_pretraining, config, world, fresh=fresh, stay_awake=stay_awake, json=json)
    if not json:
        say_how_to_talk(home.run(config.tag))


def mid_command(
    config: Annotated[
        MidConfig,
        First("source", "data", "identity", "epochs", "model_tag"),
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
    """Mid-train a base model on a large mixture of conversations, before sft.

    The model learns whole conversations, including the user's messages and answers with "weight":
    0, and rows are packed without gaps. This is nanochat's mid-training, for a large mixture of
    chat, questions and tool use. If you only have a few thousand conversations, skip it and use
    sft, which takes the same files. To resume from the newest checkpoint, repeat the same command.
    """
    config = with_adapter(config, lora, adapter)
    from mlxchat.train.mid import MidTraining, run_mid_training

    settled = lead_from_source(
        MidTraining,
        run_mid_training,
        MidTraining.with_source,
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
        if not lora:
            say(f"Teach it to answer: {command('sft', source=settled.tag)} --data ...")
        say_how_to_talk(Home.from_environment().run(settled.tag))


def sft_command(
    config: Annotated[
        SftConfig,
        First("source", "data", "identity", "epochs", "model_tag"),
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
    """Fine-tune a model on conversations, which turns it into a chat model.

    Only the assistant's messages count in the loss, and conversations are never split between rows.
    Each line or row of a file may be {"messages": [{"role": ..., "content": ...}]}, a bare list of
    messages, ShareGPT, Alpaca, Dolly, a prompt with its completion, GSM8K or multiple choice.
    Answers with "weight": 0 or "train": false are left out of the loss. mlxchat reports how many
    rows it skipped or changed, and which keys it ignored. To resume from the newest checkpoint,
    repeat the same command.
    """
    config = with_adapter(config, lora, adapter)
    from mlxchat.train.sft import FineTuning, run_fine_tuning

    settled = lead_from_source(
        FineTuning,
        run_fine_tuning,
        FineTuning.with_source,
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


def info_command(
    config: Annotated[
        PretrainConfig,
        First("depth", "budget", "dataset", "model_tag", "memory_limit"),
        Unset({"lora"}),
    ],
    *,
    lora: Lora = False,
    adapter: Annotated[LoraTraining, Unset({"dropout"})],
    below: Annotated[Layers, Without({"resume"})],
    ranks: RankCount = 1,
    hosts: Hosts = None,
    rank_timeout: RankTimeout = RANK_PATIENCE,
    json: Json = False,
) -> None:
    """Show a model's size, and how much time and memory its training takes here.

    Takes the same options as train. With only --model-tag, it describes that run, whatever its
    stage.
    """
    config = with_adapter(config, lora, adapter)
    home = Home.from_environment()
    newest = saved_folder(config, home)
    saved = saved_run(config, newest) if newest else None
    if newest and saved is None:
        show_model(newest, json)
        return
    launch_if_asked(ranks, hosts, rank_timeout)
    from mlxchat.train.base import with_shape_of_base
    from mlxchat.train.pretrain import Pretraining

    world = joined(config, rank_timeout)
    if not world.leads:
        follow_run(Pretraining, config, world, stay_awake=False)
        return
    settings = saved.trainer.settings if saved else with_shape_of_base(config, home)
    _show_estimate(settings, below, home, world, saved, json, train=False)


def tokenizer_train_command(
    config: DataConfig,
    max_chars: Annotated[
        int, typer.Option(min=1, help="Train on at most this many characters.")
    ] = MAX_CHARACTERS,
    json: Json = False,
) -> None:
    """Train a tokenizer on the training shards. It replaces the existing one.

    Existing models keep the tokenizer they were trained with.
    """
    from mlxchat.train.inputs import open_documents
    from mlxchat.train.tokenizer import tokenizer_folder, train_tokenizer

    home = Home.from_environment()
    folder = tokenizer_folder(config, home)
    with (
        exit_promptly(),
        Screen(json) as screen,
        closing(open_documents(config, home, screen.show)) as documents,
    ):
        tokenizer = train_tokenizer(
            documents, folder, config.vocab_size, screen.show, max_characters=max_chars
        )
    if json:
        say_json({"vocab_size": tokenizer.vocab_size, "folder": str(folder)})
    else:
        say(f"Saved a tokenizer with {tokenizer.vocab_size:,} tokens in {folder}.")


def _say_how_long(
    config: PretrainConfig, home: Home, world: "World", fresh: bool, yes: bool
) -> None:
    """Say how long a run will take here; ask whether to start one that takes more than a day.

    There must be a terminal to ask at. Rank 0 asks; the others wait for it.

    Raises:
        typer.Exit: the answer is no.
    """
    from mlxchat.train.estimate import estimate_run

    config, saved = _checked(config, home, fresh)
    if saved and saved.trainer.finished:
        return
    with Screen() as screen:
        facts = estimate_run(config, home, saved, screen.show, world, check_limits=True)
        where = "on this machine" if world.alone else f"with {world.size} ranks"
        rest = "the rest" if saved else "training"
        text = f"{facts.tag}: {rest} should take {about(facts.seconds)} {where}."
        screen.show(Noted(time.time(), text))
    if facts.seconds < DAY or saved or yes or not can_ask():
        return
    say("For a shorter run, say how long you have, as in --budget 1h, or set a smaller --depth.")
    if not agreed("Start it?"):
        say("The run was not started.")
        world.dismiss()
        raise typer.Exit(1)


def _dry_run(
    config: PretrainConfig, below: Layers, home: Home, world: "World", fresh: bool, json: bool
) -> None:
    """Show what `train` would do, and fail where it would fail."""
    config, saved = _checked(config, home, fresh)
    _show_estimate(config, below, home, world, saved, json, train=True)


def _checked(
    config: PretrainConfig, home: Home, fresh: bool
) -> "tuple[PretrainConfig, SavedRun[PretrainConfig] | None]":
    """Return the settings with those that follow from others, and the run that they resume.

    It reads neither texts nor the arrays of a checkpoint.

    Raises:
        MlxchatError: the settings cannot work or differ from those of the saved run, data are
            missing, or the tokenizer has another size.
    """
    from mlxchat.checkpoint.run_names import require_own_spelling
    from mlxchat.train.base import with_shape_of_base
    from mlxchat.train.core import check_core
    from mlxchat.train.inputs import check_documents
    from mlxchat.train.pretrain import Pretraining
    from mlxchat.train.tokenizer import stored_tokenizer

    require_tracker(config.track)
    require_own_spelling(home, config.tag, "model_tag")
    config = with_shape_of_base(config, home)
    saved = None if fresh else Pretraining(config, home).saved()
    if not (saved and saved.trainer.finished):
        check_core(config, home)
        begun_with = (saved.trainer.data, saved.trainer.revision) if saved else ([], None)
        check_documents(config, home, *begun_with)
    if saved is None:
        stored_tokenizer(config, home)
    return config, saved


def _show_estimate(
    config: RunConfig,
    below: Layers,
    home: Home,
    world: "World",
    saved: "SavedRun[Any] | None",
    json: bool,
    *,
    train: bool,
) -> None:
    """Plan the run, or take the plan of the saved one, and show what it takes."""
    from mlxchat.plan.budget import reason
    from mlxchat.train.estimate import estimate_run
    from mlxchat.ui.estimate import estimate_heading, estimate_sections
    from mlxchat.ui.tables import show

    with Screen(stream=sys.stderr) as screen:
        facts = estimate_run(config, home, saved, screen.show, world, check_limits=train)
    world.dismiss()
    if json:
        say_json({**facts.model_dump(mode="json"), "settings": config.model_dump(mode="json")})
        return
    heading = estimate_heading(facts)
    if isinstance(config, PretrainConfig) and facts.plan.costs:
        heading.append(as_options(reason(config, facts.plan)))
    if isinstance(config, PretrainConfig) and config.of_preset:
        heading.append(as_options(f"Preset {config.preset}: {config.of_preset}"))
    show(heading, [*below.sections(config), *estimate_sections(facts)])
