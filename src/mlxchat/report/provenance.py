"""Where a run came from: its settings, those that were derived, the command that repeats it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from mlxchat.config.lora import LoraTraining
from mlxchat.config.pretrain import PRESETS, PretrainConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.counts import counted
from mlxchat.errors import ConfigError, command
from mlxchat.plan.plan import Plan
from mlxchat.report.words import bytes_in_words, figure

SettingOrigin = Literal["given", "default", "derived"]


class ShownSetting(NamedTuple):
    """A setting of a run, as a report shows it.

    Attributes:
        group: the title of the settings that it is among.
        origin: ``given`` if it differs from the default; ``derived`` if the run's plan has it.
    """

    group: str
    name: str
    value: str
    origin: SettingOrigin


def command_of_run(
    stage: str, config: RunConfig, name: str, ranks: int = 1, fresh: bool = False
) -> str:
    """Return the command that trains a run of the same settings and the same name.

    Settings at their defaults are left out, and so is a ``None`` that only Python can give in place
    of a default. Of a folder below the user's own, the path begins with ``~``, which the command
    line takes, too.

    Args:
        stage: its stage.
        config: its settings.
        name: its name.
        ranks: the processes that train it.
        fresh: whether it starts from scratch where there is such a run, and does not resume it.

    >>> command_of_run("pretraining", PretrainConfig(depth=4, seed=7), "d4", fresh=True)
    'mlxchat train --seed 7 --depth 4 --fresh'
    """
    preset, given = _preset(config), _given(config)
    options = {name: value for name, value in given.items() if value != preset.get(name)}
    options.pop("model_tag", None)
    lora = options.pop("lora", None)
    if isinstance(lora, LoraTraining):
        options |= {"lora": True, **_given(lora)}
    if ranks > 1:
        options["ranks"] = ranks
    if not _is_default_name(config, name):
        options["model_tag"] = name
    if fresh:
        options["fresh"] = True
    words = (_option(name, value) for name, value in options.items() if value is not None)
    return " ".join([command(COMMAND_OF_STAGE[stage]), *words])


def _preset(config: RunConfig) -> Mapping[str, Any]:
    """Return the settings that the preset of a run stands for; none without one."""
    preset = config.preset if isinstance(config, PretrainConfig) else None
    return PRESETS[preset] if preset else {}


def _is_default_name(config: RunConfig, name: str) -> bool:
    """Return whether a run of these settings would have that name without being given it."""
    own = {"model_tag": _preset(config).get("model_tag")}
    try:
        return name == config.model_copy(update=own).tag
    except ConfigError:
        return False


def _given(settings: BaseModel) -> dict[str, object]:
    """Return the settings that differ from their defaults."""
    fields = type(settings).model_fields.items()
    found = {name: getattr(settings, name) for name, _ in fields}
    return {name: found[name] for name, entry in fields if found[name] != entry.default}


def _option(name: str, value: object) -> str:
    """Return a setting as the command line takes it; a list is repeated."""
    if isinstance(value, list):
        return " ".join(_option(name, each) for each in value)
    if value is False:
        name, value = f"no_{name}", True
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if isinstance(value, dict | BaseModel):
        fields = value if isinstance(value, dict) else value.model_dump(exclude_none=True)
        value = ", ".join(f"{part}={text}" for part, text in fields.items() if text is not None)
    value = without_home(str(value)) if isinstance(value, Path | str) else value
    return command("", **{name: value}).removeprefix(command("")).lstrip()


def without_home(text: str) -> str:
    """Return a path with ``~`` for the user's own folder, which is nobody else's business."""
    own = str(Path.home()) if _has_home() else ""
    return f"~{text[len(own) :]}" if len(own) > 1 and text.startswith(f"{own}/") else text


def _has_home() -> bool:
    try:
        return Path.home().is_absolute()
    except RuntimeError:  # nothing says where it is
        return False


def shown_settings(settings: RunConfig, plan: Plan) -> list[ShownSetting]:
    """Return all settings of a run with their values, those that the plan derived among them."""
    derived = _derived(settings, plan)
    found = []
    for name, field in type(settings).model_fields.items():
        value: object = getattr(settings, name)
        group = _group(type(settings), name)
        if value in (None, "auto") and derived.get(name) is not None:
            found.append(ShownSetting(group, name, _shown(derived[name]), "derived"))
            continue
        origin: SettingOrigin = "default" if value == field.default else "given"
        if origin == "default" and name in derived and derived[name] != value:
            found.append(ShownSetting(group, name, _shown(derived[name]), "derived"))
        else:
            found.append(ShownSetting(group, name, _shown(value), origin))
    return found


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    """Return the numbers of a plan that are no settings, with their names."""
    rates = [
        (f"learning rate, {group}", figure(rate)) for group, rate in plan.learning_rates.items()
    ]
    rows = f"{plan.accumulation:,} × {counted(plan.device_batch_size, 'rows')}"
    facts = [
        ("micro-batches of a step", f"{rows} of {plan.row_tokens:,} tokens"),
        ("tokens of a step", f"{plan.tokens_per_step:,}"),
        ("FLOPs of a token", f"{plan.flops_per_token:,}"),
        *rates,
        ("weight decay", figure(plan.weight_decay)),
        ("recomputed activations", "yes" if plan.grad_checkpoint else "no"),
    ]
    if plan.peak:
        facts.append(("estimated peak memory", bytes_in_words(plan.peak)))
    return facts


def _group(model: type[BaseModel], name: str) -> str:
    """Return the title of the first model that declares a setting."""
    declaring = [base for base in model.__mro__ if name in vars(base).get("__annotations__", {})]
    title = declaring[-1].model_config.get("title") if declaring else None  # type: ignore[attr-defined]
    return title or "Adapter"


def _derived(settings: RunConfig, plan: Plan) -> dict[str, object]:
    """Return what the settings that may be left open have come to, by their names."""
    model = plan.model
    rows = plan.eval_rows * plan.row_tokens
    derived: dict[str, object] = {
        "model_tag": settings.tag,
        "depth": model.n_layer,
        "arch": model.arch,
        "max_seq_len": model.sequence_len,
        "window_pattern": model.window_pattern,
        "vocab_size": model.vocab_size,
        "num_iterations": plan.num_iterations,
        "total_batch_size": plan.tokens_per_step,
        "device_batch_size": plan.device_batch_size,
        "grad_checkpoint": "on" if plan.grad_checkpoint else "off",
        "memory_limit": bytes_in_words(plan.memory_limit) if plan.memory_limit else None,
        "eval_tokens": rows if plan.drawing is None else None,
        "sample_every": settings.sampling_interval(plan.num_iterations),
        "dropout": plan.dropout,
        "grad_clip": plan.grad_clip,
        "warmup_steps": plan.warmup_steps,
        "warmdown_ratio": plan.warmdown_ratio,
        "final_lr_frac": plan.final_lr_frac,
        "weight_decay": plan.weight_decay,
    }
    if isinstance(settings, PretrainConfig):
        numbers = settings.numbers._asdict()
        derived |= {name: numbers[name] for name in numbers.keys() & _RECIPE}
        derived["recipe"] = settings.recipe_name
    if not isinstance(settings, PretrainConfig):
        derived = {n: v for n, v in derived.items() if getattr(settings, n, 0) in (None, "auto")}
    return derived


_RECIPE = {"target_param_data_ratio", "embedding_lr", "unembedding_lr", "scalar_lr"}


def _shown(value: Any) -> str:
    """Return the value of a setting as a text."""
    if value is None or value == "":
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, BaseModel):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
        return ", ".join(f"{n} {_shown(v)}" for n, v in parts.items() if v is not None)
    return without_home(str(value))
