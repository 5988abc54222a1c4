"""Training an adapter: what is held and saved, resuming bit for bit, and what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlxchat.checkpoint import adapters, layout, store, trainer
from mlxchat.config.lora import LoraTraining
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.errors import CheckpointError, ConfigError, DivergedError, MemoryLimitError
from mlxchat.home import Home
from mlxchat.model.adapter import HEAD, adapter_parameters
from mlxchat.model.lora import adapter_arrays
from mlxchat.model.quantization import Format, quantizable
from mlxchat.model.quantized import quantize_layers
from mlxchat.runtime import mx
from mlxchat.system import own_command
from mlxchat.telemetry.events import Evaluated, Event, Stepped
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.run import run as run_stage
from mlxchat.train.sft import FineTuning
from mlxchat.train.step import StepParts, compile_step

BASE = PretrainConfig(
    depth=1,
    dataset="builtin",
    vocab_size=300,
    max_seq_len=64,
    device_batch_size=4,
    total_batch_size=256,
    num_iterations=4,
    eval_every=0,
    sample_every=0,
    save_every=0,
    model_tag="base",
)
LORA = {"rank": 2, "learning_rate": 0.01}
IDS = mx.array([[3, 1, 4, 1, 5, 9]])
STEPS = 6


def pretrained(home: Path, **settings: object) -> Path:
    config = PretrainConfig.model_validate({**BASE.model_dump(exclude_unset=True), **settings})
    for _ in run_pretraining(config, Home(home), lambda _: None):
        pass
    return store.directory(Home(home).runs / config.tag, 4)


def write_talks(path: Path) -> None:
    said = "Hello there", "a fox", "What is red?", "Count the dogs, please", "the lazy dog jumps"
    rows = (
        [
            {"role": "user", "content": f"{said[i % 5]} {i}"},
            {"role": "assistant", "content": f"{said[(i + 2) % 5]} {i * 7}"},
        ]
        for i in range(120)
    )
    path.write_text("".join(f"{json.dumps({'messages': row})}\n" for row in rows))


@pytest.fixture(scope="module")
def based(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a base model, and conversations."""
    home = tmp_path_factory.mktemp("based")
    pretrained(home)
    write_talks(home / "talks.jsonl")
    return home


def quantized(home: Path) -> str:
    """Quantize the base into a run of its own; returns its name."""
    source = Home(home).runs / "base" / "step_000004"
    saved = layout.read_model(source, mx.float32)
    layers = [layer.name for layer in quantizable(saved.model.config)]
    quantize_layers(saved.model, dict.fromkeys(layers, Format(group_size=32, bits=4)))
    store.save(
        Home(home).runs / "base-4bit",
        4,
        lambda folder: layout.write_model(folder, saved.model, saved.tokenizer, False),
    )
    return "base-4bit"


def tuning(home: Path, source: str = "base", **lora: object) -> SftConfig:
    return SftConfig(
        source=source,
        data=[str(home / "talks.jsonl")],
        lora=LoraTraining.model_validate({**LORA, **lora}),
        num_iterations=STEPS,
        total_batch_size=256,
        device_batch_size=2,
        validation_share=0.1,
        eval_every=3,
        eval_tokens=512,
        sample_every=0,
        save_every=2,
        model_tag="tuned",
    )


def run(
    home: Path, config: SftConfig, stop_at: int = 0, compile: Any = compile_step
) -> list[Event]:
    """All events of a run that is asked to stop once step ``stop_at`` is seen."""
    seen: list[Event] = []

    def stop() -> bool:
        steps = (event.step for event in seen if isinstance(event, Stepped))
        return bool(stop_at) and max(steps, default=0) >= stop_at

    stage = FineTuning(config, Home(home), compile=compile)
    for event in run_stage(stage, stop=stop):
        seen.append(event)
    return seen


def step(home: Path, number: int = STEPS, tag: str = "tuned") -> Path:
    return store.directory(Home(home).finetuned / tag, number)


def final(home: Path) -> dict[str, mx.array]:
    files = adapters.ADAPTER_FILE, trainer.OPTIMIZER, trainer.LOADER
    return {f"{f} {k}": v for f in files for k, v in layout.read_arrays(step(home) / f).items()}


def straight_and_resumed(home: Path, tmp_path: Path, config: SftConfig) -> None:
    """Run once in one go and once in three, and compare every array that is saved."""
    once, thrice = (Path(shutil.copytree(home, tmp_path / name)) for name in ("once", "thrice"))
    given = [
        config.model_copy(update={"data": [str(each / "talks.jsonl")]}) for each in (once, thrice)
    ]
    run(once, given[0])
    for stop_at in (1, 4, 0):
        run(thrice, given[1], stop_at)
    a, b = final(once), final(thrice)
    assert a.keys() == b.keys()
    assert all(mx.array_equal(a[name], b[name]) for name in a)


def test_only_the_adapter_is_trained_and_saved(based: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(based, tmp_path / "home"))
    before = layout.read_model(Home(home).runs / "base" / "step_000004", mx.float32).model
    events = run(home, tuning(home))
    losses = [event.bits_per_byte for event in events if isinstance(event, Evaluated)]
    assert losses[-1] < losses[0]
    saved = layout.read_model(step(home), mx.float32)
    assert saved.conversational
    assert saved.model.adapter is not None
    assert HEAD in (saved.model.adapter.modules or ())  # it has to learn the tokens of messages
    assert mx.abs(saved.model(IDS) - before(IDS)).max() > 1e-3
    arrays = adapter_arrays(saved.model)
    own = sum(array.nbytes for array in arrays.values())
    assert own == 4 * adapter_parameters(before.config, saved.model.adapter)
    state = layout.read_arrays(step(home) / trainer.OPTIMIZER)
    assert sum(array.nbytes for array in state.values()) == 2 * own + 4
    assert store.size(step(home)) < store.size(Home(home).runs / "base" / "step_000004")
    frozen = saved.model.named_parameters()
    for name, weight in before.named_parameters().items():
        inside = name.replace(".weight", ".linear.weight")
        assert mx.array_equal(weight, frozen.get(inside, frozen.get(name))), name


def test_it_resumes_bit_for_bit(based: Path, tmp_path: Path) -> None:
    straight_and_resumed(based, tmp_path, tuning(based))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora", [{"dropout": 0.2}, {"dora": True, "layers": 1}], ids=["lora", "dora"]
)
@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("bits", [None, 4])
def test_every_kind_resumes_bit_for_bit(
    tmp_path: Path, arch: str, bits: int | None, lora: dict[str, object]
) -> None:
    home = tmp_path / "home"
    pretrained(home, arch=arch, depth=2)
    write_talks(home / "talks.jsonl")
    source = quantized(home) if bits else "base"
    straight_and_resumed(home, tmp_path, tuning(home, source, **lora))


@pytest.mark.slow
def test_ranks_train_the_adapter_of_one_process(tmp_path: Path) -> None:
    """On a quantized model, which only rank 0 reads."""
    home = tmp_path / "home"
    pretrained(home)
    write_talks(home / "talks.jsonl")
    source = quantized(home)
    for ranks in (1, 2):
        config = tuning(home, source).model_copy(update={"model_tag": f"ranks-{ranks}"})
        given = {**config.model_dump(exclude_unset=True, exclude={"lora", "data"}), **LORA}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        command = own_command("mlxchat", "sft", "--lora", f"--data={home / 'talks.jsonl'}", *words)
        variables = os.environ | {"MLXCHAT_HOME": str(home)}
        subprocess.run([*command, f"--ranks={ranks}"], env=variables, check=True)
    alone, together = (
        layout.read_arrays(step(home, tag=f"ranks-{ranks}") / adapters.ADAPTER_FILE)
        for ranks in (1, 2)
    )
    assert alone.keys() == together.keys()
    for name, array in alone.items():
        apart = mx.linalg.norm(array - together[name]).item()
        assert apart <= 1e-4 * mx.linalg.norm(array).item(), name


def test_numbers_that_are_none_are_never_saved(based: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(based, tmp_path / "home"))

    def compiled(parts: StepParts, stop: ShouldStop = lambda: False) -> Launch:
        launch = compile_step(parts, stop)

        def spoiling(number: int) -> Pending:
            pending = launch(number)
            if number == 4:
                name, array = next(iter(parts.model.named_trainable().items()))
                parts.model.load_weights([(name, array * mx.nan)], strict=False)
            return pending

        return spoiling

    with pytest.raises(DivergedError, match="lora_a has numbers that are not finite"):
        run(home, tuning(home), compile=compiled)
    assert max(store.steps(Home(home).finetuned / "tuned")) < 4


@pytest.mark.slow
def test_pretraining_continues_with_an_adapter(based: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(based, tmp_path / "home"))
    config = PretrainConfig.model_validate(
        {
            **BASE.model_dump(include={"dataset", "device_batch_size", "total_batch_size"}),
            "init_from": "base",
            "lora": LORA,
            "num_iterations": 2,
            "eval_every": 0,
        }
    )
    for _ in run_pretraining(config, Home(home), lambda _: None):
        pass
    folder = store.directory(Home(home).runs / "base-continued-lora", 2)
    saved = layout.read_model(folder, mx.float32)
    assert saved.model.adapter is not None
    assert saved.model.adapter.modules is not None
    assert HEAD not in saved.model.adapter.modules
    assert not saved.conversational


def test_what_fits_is_what_an_adapter_takes(based: Path) -> None:
    with pytest.raises(MemoryLimitError, match=r"an adapter of .* parameters on a model of"):
        run(based, tuning(based).model_copy(update={"memory_limit": "1MB"}))


def test_an_adapter_is_not_trained_on(based: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(based, tmp_path / "home"))
    run(home, tuning(home).model_copy(update={"num_iterations": 1, "eval_every": 0}))
    again = tuning(home, "tuned").model_copy(update={"model_tag": "again"})
    with pytest.raises(CheckpointError, match="is an adapter, which cannot be trained further"):
        run(home, again)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": True, "init_lr_frac": 0.5},
        {"lora": True, "load_optimizer": True},
    ],
)
def test_settings_without_effect_on_an_adapter_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="has no effect with `lora`"):
        SftConfig.model_validate(settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"init_from": "d2", "matrix_lr": 0.1}, {"init_from": "d2", "budget": "1h"}],
)
def test_pretraining_an_adapter_needs_a_model(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="adapter"):
        PretrainConfig.model_validate({"lora": True, **settings})
