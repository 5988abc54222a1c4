"""Runs with adapters of random numbers on a model, as training would leave them."""

from pathlib import Path
from typing import Any

from mlxchat.checkpoint import history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.home import Home
from mlxchat.model.adapter import LoraConfig, adapter_shapes
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import Arrays
from mlxchat.model.lora import load_adapter
from mlxchat.runtime import mx

LORA = LoraConfig(rank=2, scale=2.0)


def random_arrays(config: GPTConfig, lora: LoraConfig = LORA, seed: int = 0) -> Arrays:
    """The arrays of an adapter, none of them zero."""
    shapes = adapter_shapes(config, lora)
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    drawn = zip(shapes.items(), keys, strict=True)
    return {name: 0.2 * mx.random.normal(shape, key=key) + 0.1 for (name, shape), key in drawn}


def base_run(home: Home, saved: SavedModel, name: str = "d2", step: int = 4) -> Path:
    """The step of a run that a model is saved in."""

    def write(folder: Path) -> None:
        layout.write_model(folder, saved.model, saved.tokenizer, saved.conversational)

    return store.save(home.runs / name, step, write)


def adapter_run(home: Home, base: Path, name: str, lora: LoraConfig = LORA, seed: int = 0) -> Path:
    """The step of a run that has an adapter on the model in another step."""
    saved = layout.read_model(base, mx.float32)
    load_adapter(saved.model, lora, random_arrays(saved.model.config, lora, seed))
    record = history.record_of_base(base)

    def write(folder: Path) -> None:
        layout.write_adapted(folder, saved.model, saved.tokenizer, True, record)
        History(tag=record.run, step=record.step).write(folder)

    return store.save(home.finetuned / name, 6, write)


def logits(model: Any, ids: tuple[int, ...] = (3, 1, 4, 1, 5)) -> mx.array:
    """What a network computes."""
    computed: mx.array = model(mx.array([ids]))
    return computed
