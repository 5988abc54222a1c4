"""Two exports, imports or copies into one place at once: one model is there, whole, or none is."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.foreign_models import saved, write_nanochat
from support.models import BYTES

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.home import Home
from mlxchat.interop import exporters, importers
from mlxchat.interop.importers import open_model
from mlxchat.interop.importers.model import read_network
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.trained import Model

HISTORY = History(tag="d4", step=7)


def scaled(saved: SavedModel, factor: float) -> SavedModel:
    """A copy with other weights."""
    model = GPT(saved.model.config)
    model.load_weights([(n, w * factor) for n, w in saved.model.named_parameters().items()])
    mx.eval(model.parameters())
    return SavedModel(model, BYTES, saved.conversational)


def at_once(*works: Callable[[], object]) -> list[BaseException | None]:
    """Do works in threads that begin together; return what each of them raised."""
    barrier, ends = threading.Barrier(len(works)), dict[int, BaseException | None]()

    def do(number: int, work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
            ends[number] = None
        except MlxchatError as error:
            ends[number] = error

    threads = [threading.Thread(target=do, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ends[number] for number in range(len(works))]


def test_of_two_exports_one_is_there_whole(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", "classic")
    models, folder = (first, scaled(first, 2.0)), tmp_path / "out"

    def export(model: SavedModel) -> None:
        exporters.write("mlx-lm", folder, model, HISTORY, mx.float32, limit=50_000)

    ends = at_once(*(lambda model=model: export(model) for model in models))
    (winner,) = [model for model, end in zip(models, ends, strict=True) if end is None]
    found = read_network(open_model(folder)).named_parameters()
    expected = winner.model.named_parameters()
    assert all(mx.array_equal(found[name], array) for name, array in expected.items())
    assert not (tmp_path / ".out.unfinished").exists()


def test_an_export_is_refused_while_another_writes_the_folder(tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a", "classic"), tmp_path / "out"
    refused = []

    def report(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(LockedError, match="Another process is writing") as caught:
                exporters.write("nanochat", folder, model, HISTORY, mx.float32)
            refused.append(caught.value)

    exporters.write("mlx-lm", folder, model, HISTORY, mx.float32, report)
    assert "`out`" in refused[0].remedy
    assert (folder / "model.safetensors").exists() and not (folder / "tokenizer").exists()


def test_an_import_is_refused_while_another_writes_the_run(tmp_path: Path) -> None:
    run, foreign = tmp_path / "d4", open_model(write_nanochat(tmp_path / "a", "classic"))
    later = open_model(write_nanochat(tmp_path / "a", "classic", step=9))
    refused = []

    def report(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(LockedError, match="Another process is using the run d4") as caught:
                importers.import_run(run, later)
            refused.append(caught.value)

    importers.import_run(run, foreign, report=report)
    with pytest.raises(MlxchatError, match="There is already a model in"):
        importers.import_run(run, later)  # whose name was free when the command began
    assert [path.name for path in run.iterdir()] == ["step_000007"]


def test_of_two_copies_one_is_saved_whole(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", "classic")
    models, folder = (first, scaled(first, 2.0)), tmp_path / "copy"
    home = Home(tmp_path)
    ends = at_once(
        *(lambda m=model: Model(m, HISTORY, home).save(folder) for model in models),
    )
    (winner,) = [model for model, end in zip(models, ends, strict=True) if end is None]
    (step,) = folder.iterdir()
    found = layout.read_model(step, mx.float32).model.named_parameters()
    expected = winner.model.named_parameters()
    assert all(mx.array_equal(found[name], array) for name, array in expected.items())
