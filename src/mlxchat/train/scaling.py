"""The runs of a ladder of depths, each an ordinary pretraining run, before and after training.

Whatever has been trained of a ladder is in its runs. The same settings make the same runs again, so
that those that have ended are kept, and one that was interrupted resumes.
"""

from collections.abc import Sequence
from contextlib import closing

from mlxchat import runtime
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import NAME_IN_WORDS, require_name
from mlxchat.config.units import spell_duration
from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.plan.budget import budgeted_plan
from mlxchat.plan.estimate import UTILISATION
from mlxchat.plan.plan import shape
from mlxchat.plan.scaling import LADDERS, Rung, divided, rungs_that_fit
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Report
from mlxchat.train.inputs import open_documents, ready_tokenizer
from mlxchat.train.measure import resources
from mlxchat.train.pretrain import Pretraining

# The same validation text for all, whatever their batches, and so little that a short run can
# spare the time; no samples, and no checkpoint but the newest.
DEFAULTS = {"eval_tokens": 32_768, "sample_every": 0, "keep": 1}


def plan_ladder(
    config: PretrainConfig,
    depths: Sequence[int] | None,
    seconds: int,
    name: str,
    home: Home,
    report: Report,
    fresh: bool = False,
) -> list[PretrainConfig]:
    """Return the settings of a ladder's runs, the shallowest first, after a check of them all.

    If there is no tokenizer, one is trained, on top of the budget: were it part of the first run,
    that one alone would have less time to learn.

    Args:
        config: the settings that the runs share.
        depths: of the models, in ascending order; None for as many of `LADDERS` as fit.
        seconds: the time of all runs together.
        name: what the runs' names begin with.
        home: where data, tokenizer and runs are.
        report: called with the progress of downloads and of the tokenizer's training.
        fresh: whether runs of that name are to be set aside.

    Raises:
        ConfigError: the budget is too short, a depth cannot be built, the settings cannot work, or
            a run of that name was started with others.
        MemoryLimitError: a model cannot be trained in the memory.
        MlxchatError: as `mlxchat.train.run.run`, for data, tokenizer and saved runs.
    """
    if config.eval_every == 0:
        raise ConfigError(
            "With `eval_every=0` nothing says how much a run has learnt.", "Leave it out."
        )
    wanted = depths or LADDERS[runtime.machine().backend]
    for depth in wanted:  # before the tokenizer is trained
        shape(config, config.recipe.vocabulary, depth)
    vocab_size = _vocabulary(config, home, report)
    models = [shape(config, vocab_size, depth) for depth in wanted]
    if depths is None:
        models = list(rungs_that_fit(models, seconds))
    rungs = [
        _settings(config, model.n_layer, share, name)
        for model, share in zip(models, divided(models, seconds), strict=True)
    ]
    for rung in rungs:
        if fresh or not _is_saved(rung, home):
            _require_room(rung, vocab_size)
    return rungs


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
            f"The run {config.tag} has not ended.", "Repeat the same command to resume it."
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


def _settings(config: PretrainConfig, depth: int, seconds: int, name: str) -> PretrainConfig:
    """Return the settings of the run of a depth."""
    given = {field: getattr(config, field) for field in config.model_fields_set}
    tag = require_name(f"{name}-d{depth}", f"Name them with `model_tag`: use {NAME_IN_WORDS}.")
    budget = spell_duration(seconds)
    return PretrainConfig(
        **{**DEFAULTS, **given, "depth": depth, "budget": budget, "model_tag": tag}
    )


def _vocabulary(config: PretrainConfig, home: Home, report: Report) -> int:
    """Return the number of tokens of the runs' tokenizer, which is trained if there is none."""
    with closing(open_documents(config, home, report)) as documents:
        preparing = ready_tokenizer(config, home, documents, report, SYSTEM_CLOCK)
        try:
            while True:
                report(next(preparing))
        except StopIteration as ready:
            return int(ready.value.vocab_size)


def _is_saved(config: PretrainConfig, home: Home) -> bool:
    """Return whether there is a run to resume.

    Raises:
        ConfigError: it was started with other settings.
    """
    try:
        return Pretraining(config, home).saved() is not None
    except ConfigError as error:
        raise ConfigError(
            f"{error.problem} The `budget` of a run is its share of the ladder's.", error.remedy
        ) from error


def _require_room(config: PretrainConfig, vocab_size: int) -> None:
    """Check that a run can be trained here, as far as that shows without measuring its speed.

    Raises:
        MlxchatError: its settings do not go together, or it needs more memory or time.
    """
    speed = UTILISATION * runtime.matmul_flops(dtype=runtime.compute_dtype(config.dtype))
    seconds = float(config.budget_seconds or 0)
    budgeted_plan(
        config, vocab_size, resources(config.dtype), lambda: seconds, speed, lambda _: None
    )
