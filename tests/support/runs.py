"""Small runs of pretraining, their data, and what they leave."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.checkpoint import layout, store, trainer
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.shards import shard_name
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Event, Stepped
from mlxchat.train.base import with_shape_of_base
from mlxchat.train.inputs import open_documents
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.run import run as run_stage
from mlxchat.train.step import Compile, StepParts, compile_step
from mlxchat.train.tokenizer import ready_tokenizer, tokenizer_folder

SETTINGS = {
    "depth": 1,
    "dataset": "builtin",
    "vocab_size": 300,
    "max_seq_len": 32,
    "device_batch_size": 4,
    "total_batch_size": 256,
    "num_iterations": 12,
    "eval_every": 5,
    "eval_tokens": 512,
    "sample_every": 6,
    "save_every": 3,
    "keep": 2,
    "model_tag": "run",
}
CONFIG = PretrainConfig.model_validate(SETTINGS)
OWN = CONFIG.model_copy(update={"dataset": "fineweb-edu", "sample_every": 0})  # of `shards`
QUIET = OWN.model_copy(update={"eval_every": 0, "save_every": 3})


def run(
    home: Path,
    config: PretrainConfig = CONFIG,
    stop_at: int = 0,
    compile: Compile = compile_step,
    **keywords: bool,
) -> list[Event]:
    """Return all events of a run that is asked to stop once step ``stop_at`` is seen."""
    seen: list[Event] = []

    def stop() -> bool:
        return bool(stop_at) and any(
            isinstance(event, Stepped) and event.step >= stop_at for event in seen
        )

    where = Home(home)
    stage = Pretraining(
        with_shape_of_base(config, where), where, lambda _: None, SYSTEM_CLOCK, compile
    )
    for event in run_stage(stage, stop=stop, **keywords):
        seen.append(event)
    return seen


def train_builtin_tokenizer(home: Path) -> Path:
    """Train the tokenizer of `CONFIG` as a run does, and return its folder."""
    documents = open_documents(CONFIG, Home(home), lambda _: None)
    list(ready_tokenizer(CONFIG, Home(home), documents, lambda _: None, SYSTEM_CLOCK))
    return tokenizer_folder(CONFIG, Home(home))


def final(home: Path, tag: str = "run") -> dict[str, mx.array]:
    """Every array of the last step: weights, optimizer, loader."""
    folder = store.directory(Home(home).runs / tag, 12)
    files = (layout.MODEL, trainer.OPTIMIZER, trainer.LOADER)
    return {f"{f} {k}": v for f in files for k, v in layout.read_arrays(folder / f).items()}


def assert_same(a: dict[str, mx.array], b: dict[str, mx.array]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert mx.array_equal(a[name], b[name]).item(), name


def logged(home: Path, kind: str) -> list[int]:
    """The steps of all events of a kind in the log of ``run``."""
    lines = Home(home).log("run").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == kind]


def shards(folder: Path, *numbers: int) -> Path:
    """Shards of 150 documents each."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        texts = [f"This is text {i} of shard {number}, about foxes." * 3 for i in range(150)]
        path = folder / f"shard_{number:05d}.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=50)
    return folder


def write_texts(path: Path, texts: list[str], compression: str = "zstd") -> Path:
    """A shard as `data fetch --from` writes them."""
    pq.write_table(
        pa.table({"text": texts}),
        path,
        compression=compression,
        use_dictionary=False,
        write_statistics=False,
    )
    return path


def few(folder: Path, *numbers: int, text: str = "foxes", documents: int = 10) -> Path:
    """Shards of so few documents that a run of few steps has many epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        order = random.Random(f"{text} {number}")
        letters = ["".join(order.choices("aeioulmnrst ", k=100)) for _ in range(documents)]
        write_texts(folder / shard_name(number), [f"About {text}: {some}" for some in letters])
    return folder


def run_folder(home: Path) -> Path:
    return Home(home).runs / "run"


def diverging(step: int, metrics: list[float]) -> Compile:
    """Have a step end with this loss, gradient norm and learning rate."""
    loss, norm, learning_rate = metrics

    def compiled(of: StepParts, stop: ShouldStop) -> Launch:
        launch = compile_step(of, stop)

        def launch_diverging(number: int) -> Pending:
            pending = launch(number)
            return (
                replace(pending, metrics=mx.array([norm, learning_rate, loss]))
                if number == step
                else pending
            )

        return launch_diverging

    return compiled


def spoilt(path: Path) -> bytes:
    """Its content with one byte changed, outside of the footer."""
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    return bytes(content)
