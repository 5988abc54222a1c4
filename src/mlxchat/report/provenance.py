"""The provenance of a run: its settings, given and derived, and the command that repeats it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from mlxchat.config.lora import LoraTraining
from mlxchat.config.pretrain import PRESETS, PretrainConfig
from mlxchat.config.run import AUTO, RunConfig
from mlxchat.config.sft import ConversationConfig
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.counts import counted, round_size
from mlxchat.errors import ConfigError, command
from mlxchat.plan.plan import Plan

SettingOrigin = Literal["given", "default", "derived"]


NOT_SET = "not set"  # the value of a setting that is None, and from which nothing is derived


class SettingRow(NamedTuple):
    """A setting of a run, as ``runs show``, ``runs compare`` and reports show it.

    Attributes:
        name: its name.
        value: its value as it is typed, or `NOT_SET`.
        origin: ``given`` if it differs from the default; ``derived`` if the run's plan has it.
        group: the title of the settings that it is among.
    """

    name: str
    value: str
    origin: SettingOrigin
    group: str


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


def setting_rows(config: RunConfig, plan: Plan) -> tuple[SettingRow, ...]:
    """Return all settings of a run: those given, those that the plan derived, and the defaults.

    Those of an adapter and the learning rates that came of it all are among them.
    """
    derived = _derived(config, plan)
    rows = []
    for name, field in type(config).model_fields.items():
        value, group = getattr(config, name), _group(type(config), name)
        if isinstance(value, LoraTraining):
            rows += [SettingRow(name, _typed(True), "given", group), *_adapter_rows(value)]
            continue
        origin: SettingOrigin = "default" if value == field.default else "given"
        made = derived.get(name)
        if made not in (None, value) and (origin == "default" or value in (None, AUTO)):
            value, origin = made, "derived"
        rows.append(SettingRow(name, _typed(value), origin, group))
    rates = plan.learning_rates.items()
    rows += [SettingRow(f"rate: {name}", f"{rate:.4g}", "derived", "Rates") for name, rate in rates]
    return tuple(rows)


def _adapter_rows(lora: LoraTraining) -> list[SettingRow]:
    default, rows = LoraTraining(), []
    for name in LoraTraining.model_fields:
        value = getattr(lora, name)
        given = value != getattr(default, name)
        rows.append(SettingRow(name, _typed(value), "given" if given else "default", "Adapter"))
    return rows


def measured_on(
    config: RunConfig, data: Sequence[str], fingerprints: Mapping[str, str]
) -> tuple[object, ...]:
    """Return what tells the text that bits per byte were measured on from other text.

    Args:
        config: the settings of the run.
        data, fingerprints: the files of its data, and what tells each of them from others.
    """
    if isinstance(config, PretrainConfig):
        if config.is_builtin:
            return "builtin", config.seed
        validation = data[-1] if data else ""
        dataset = None if fingerprints else config.dataset
        return validation, fingerprints.get(validation), dataset
    if isinstance(config, ConversationConfig):
        chosen = tuple(config.data or ()), config.identity, config.spelling
        return (*chosen, config.validation_share, config.seed, *sorted(fingerprints.items()))
    return ()


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    """Return the numbers of a plan that are no settings, with their names."""
    rows = f"{plan.accumulation:,} × {counted(plan.device_batch_size, 'rows')}"
    facts = [
        ("micro-batches per step", f"{rows} of {plan.row_tokens:,} tokens"),
        ("tokens per step", f"{plan.tokens_per_step:,}"),
        ("FLOPs per token", f"{plan.flops_per_token:,}"),
        ("recomputed activations", "yes" if plan.grad_checkpoint else "no"),
    ]
    if plan.memory_limit:
        facts.append(("memory limit", round_size(plan.memory_limit)))
    if plan.peak:
        facts.append(("estimated peak memory", round_size(plan.peak)))
    return facts


def _group(model: type[BaseModel], name: str) -> str:
    """Return the title of the first model that declares a setting."""
    declaring = [base for base in model.__mro__ if name in vars(base).get("__annotations__", {})]
    title = declaring[-1].model_config.get("title") if declaring else None  # type: ignore[attr-defined]
    return title or "Adapter"


def _derived(settings: RunConfig, plan: Plan) -> dict[str, object]:
    """Return what the settings that may be left open have come to, by their names."""
    model = plan.model
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
        "eval_tokens": plan.eval_rows * plan.row_tokens if plan.drawing is None else None,
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


def _typed(value: object) -> str:
    """Return the value of a setting as it is typed."""
    if value in (None, ""):
        return NOT_SET
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(_typed, value))
    if isinstance(value, BaseModel):
        return ",".join(f"{n}={_typed(v)}" for n, v in value if v is not None)
    return f"{value:.6g}" if isinstance(value, float) else without_home(str(value))
