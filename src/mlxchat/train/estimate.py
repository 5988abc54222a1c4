"""The estimate of a run on this machine, before it starts or resumes."""

import time
from typing import Any

from mlxchat import runtime
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import RunConfig
from mlxchat.home import Home
from mlxchat.plan.estimate import Estimate, Room, VocabularySource, estimate
from mlxchat.plan.plan import plan, refitted
from mlxchat.telemetry.events import Noted, Report
from mlxchat.train.base import adapter_of
from mlxchat.train.inputs import text_on_disk
from mlxchat.train.measure import Planner, resources_of_all
from mlxchat.train.resume import SavedRun
from mlxchat.train.tokenizer import (
    chooses_vocabulary,
    stored_tokenizer,
    vocabulary,
    with_tokenizer_near,
)
from mlxchat.train.world import ALONE, World


def estimate_run(
    config: RunConfig,
    home: Home,
    saved: SavedRun[Any] | None,
    report: Report,
    world: World = ALONE,
    *,
    check_limits: bool,
) -> Estimate:
    """Plan a run, or take the plan of the saved one, and estimate what it takes here.

    Args:
        config: the run's settings; those of pretraining if it is new.
        home: where the tokenizer is.
        saved: the run as it was saved; None for a new one.
        report: called with a note before this machine's speed is measured.
        world: the ranks that are to train together; this one is rank 0.
        check_limits: fail if this machine cannot grant the memory that the settings ask for.

    Raises:
        MlxchatError: the settings cannot work, or not in that memory.
    """
    available = resources_of_all(world, config.dtype)
    source: VocabularySource = "tokenizer"
    step = None
    if saved:
        step, made = saved.trainer.step, saved.plan
        if not saved.trainer.finished:
            made = refitted(made, config, available)
    else:
        assert isinstance(config, PretrainConfig)
        planner = wanted = None
        if config.budget:
            report(Noted(time.time(), "Measuring how fast this machine trains."))
            text = text_on_disk(config, home)
            timer = time.monotonic
            planner = Planner(config, available, timer(), timer, text=text, world=world)
            wanted = planner.plan(None).model.vocab_size if chooses_vocabulary(config) else None
            if tokenizer := stored_tokenizer(with_tokenizer_near(config, home, wanted), home):
                planner.text = text_on_disk(config, home, tokenizer)
        vocab_size, source = vocabulary(config, home, wanted)
        if planner:
            made = planner.plan(vocab_size)
        else:
            made = plan(config, vocab_size, available, adapter_of(config, home, available))
    world.rows(made.rows_per_step)
    limit = made.memory_limit or available.memory
    machine = runtime.machine()
    room = Room(config.memory_limit, runtime.cache_at_peak(limit, made.peak), machine.memory)
    if check_limits:
        runtime.check_limits(limit, config.wired)
    of_one = runtime.matmul_flops(dtype=runtime.compute_dtype(config.dtype))
    speed = available.devices * of_one
    return estimate(
        made, config.tag, source, step, available, room, machine.device, speed, world.size
    )
