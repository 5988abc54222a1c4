"""The runs of a scaling experiment, each an ordinary pretraining run: settings and results.

All progress is stored in the runs themselves. The same settings lead to the same runs, so finished
ones are kept and an interrupted one resumes.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from mlxchat import runtime
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import NAME_IN_WORDS, require_name
from mlxchat.config.units import spell_duration
from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.plan.budget import budgeted_plan
from mlxchat.plan.estimate import UTILISATION
from mlxchat.plan.plan import Plan
from mlxchat.plan.scaling import RUNGS, Law, Prediction, Rung, divided, predict
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Report
from mlxchat.train.inputs import open_documents, text_on_disk
from mlxchat.train.measure import resources
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.tokenizer import (
    chooses_vocabulary,
    ready_tokenizer,
    stored_tokenizer,
    tokenizer_folder,
    vocabulary,
    with_tokenizer_near,
)

NAME = "scaling"
# The same validation text for all, whatever their batches, and so little that a short run can
# spare the time; no samples, and no checkpoint but the newest.
DEFAULTS = {"eval_tokens": 16_384, "sample_every": 0, "keep": 1}


def plan_ladder(
    config: PretrainConfig,
    depths: Sequence[int] | None,
    home: Home,
    report: Report,
    fresh: bool = False,
) -> list[PretrainConfig]:
    """Return the settings of a ladder's runs, the shortest first, after a check of them all.

    If there is no tokenizer, one is trained, on top of the budget: were it part of the first run,
    that one alone would have less time to learn. All runs share it.

    Args:
        config: the settings that the runs share; ``budget`` is the time of all together, and
            ``model_tag`` what their names begin with, by default `NAME`.
        depths: of the models, the shallowest first; None for `RUNGS` that their budgets choose.
        home: where data, tokenizer and runs are.
        report: called with the progress of downloads and of the tokenizer's training.
        fresh: whether runs of those names are to be set aside.

    Raises:
        ConfigError: there is no budget or it is too short, a depth cannot be built, the settings
            cannot work, or a run of that name was started with others.
        MemoryLimitError: a model cannot be trained in the memory.
        MlxchatError: as `mlxchat.train.run.run`, for data, tokenizer and saved runs.
    """
    if config.eval_every == 0:
        raise ConfigError(
            "With `eval_every=0`, there is no measure of how much a run has learned.",
            "Leave it out.",
        )
    if config.budget_seconds is None:
        raise ConfigError("Scaling needs a `budget`.", "Give one, such as `budget=1h`.")
    of_runs: Sequence[int | None] = depths or [None] * RUNGS
    shares = divided(config.budget_seconds, len(of_runs))
    available = resources(config.dtype)
    speed = UTILISATION * runtime.matmul_flops(dtype=runtime.compute_dtype(config.dtype))

    text = text_on_disk(config, home)

    def presumed(run: PretrainConfig, vocab_size: int | None) -> Plan:
        seconds = float(run.budget_seconds or 0)
        return budgeted_plan(
            run, vocab_size, available, lambda: seconds, speed, lambda _: None, text=text
        )

    wanted = presumed(config, None).model.vocab_size if chooses_vocabulary(config) else None
    folder = tokenizer_folder(with_tokenizer_near(config, home, wanted), home)
    shared = PretrainConfig(**{**_given(config), "tokenizer_dir": folder})
    runs = [_settings(shared, *each) for each in zip(of_runs, shares, strict=True)]
    vocab_size, _ = vocabulary(shared, home, wanted)
    for run in runs:
        if fresh or Pretraining(run, home).saved() is None:
            presumed(run, vocab_size)
    with closing(open_documents(shared, home, report)) as documents:
        for event in ready_tokenizer(shared, home, documents, report, SYSTEM_CLOCK, wanted):
            report(event)
    return runs


def trained_rung(config: PretrainConfig, home: Home) -> Rung:
    """Return what a run of a ladder has come to.

    Args:
        config: the run's settings, as `plan_ladder` returned them.
        home: where it is.

    Raises:
        ConfigError: it has not ended.
        CheckpointError: it cannot be read.
    """
    saved = Pretraining(config, home).saved()
    plan = saved.plan if saved and saved.trainer.finished else None
    if saved is None or plan is None or plan.costs is None:
        raise ConfigError(
            f"The run {config.tag} has not finished.", "Repeat the same command to resume it."
        )
    return Rung(
        tag=config.tag,
        depth=plan.model.n_layer,
        width=plan.model.n_embd,
        vocab_size=plan.model.vocab_size,
        parameters=plan.parameters,
        steps=plan.num_iterations,
        tokens=plan.tokens,
        flops=plan.tokens * plan.flops_per_token,
        seconds=plan.costs.spent,
        bits_per_byte=saved.trainer.meter.evaluations[-1][1],
    )


def predictions(
    law: Law | None,
    rungs: Sequence[Rung],
    config: PretrainConfig,
    budgets: Sequence[int],
    home: Home,
) -> list[Prediction]:
    """Return what single runs would reach here; nothing unless there is a law that falls.

    Args:
        law: fitted to the rungs.
        rungs: the ladder's runs.
        config: the settings that they share.
        budgets: of the single runs, in seconds.
        home: where the data is.
    """
    if law is None or not law.falls:
        return []
    available = resources(config.dtype)
    near = with_tokenizer_near(config, home, rungs[-1].vocab_size)
    text = text_on_disk(config, home, stored_tokenizer(near, home))
    return [predict(law, rungs, config, available, seconds, text) for seconds in budgets]


def _settings(config: PretrainConfig, depth: int | None, seconds: int) -> PretrainConfig:
    """Return the settings of a run; it is named after its depth, if that is given, and its time."""
    budget = spell_duration(seconds)
    name = "-".join([config.model_tag or NAME, *([f"d{depth}"] if depth else []), budget])
    of_its_own = {
        "depth": depth,
        "budget": budget,
        "model_tag": require_name(name, f"Name them with `model_tag`: use {NAME_IN_WORDS}."),
    }
    return PretrainConfig(**{**DEFAULTS, **_given(config), **of_its_own})


def _given(config: PretrainConfig) -> dict[str, Any]:
    return {field: getattr(config, field) for field in config.model_fields_set}
