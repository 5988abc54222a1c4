"""A small run that saves every second step, killed at random moments, during writing too."""

import json
import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import files, layout, store, trainer
from mlxchat.data.fingerprint import agree
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.train.pretrain import Pretraining
from mlxchat.train.run import run as run_stage
from mlxchat.train.stage import Stage, read_trainer

NEW_MODEL: Mapping[str, object] = {  # what pretraining needs beside `SETTINGS`
    "depth": 1,
    "dataset": "builtin",
    "vocab_size": 300,
    "max_seq_len": 32,
}
SETTINGS: Mapping[str, object] = {
    "device_batch_size": 4,
    "total_batch_size": 256,
    "num_iterations": 16,
    "eval_every": 7,
    "eval_tokens": 256,
    "sample_every": 0,
    "save_every": 2,
    "keep": 2,
    "model_tag": "run",
}
STATE = (layout.MODEL, trainer.OPTIMIZER, trainer.LOADER)
MOST_STARTS = 1000

_ON_CPU = mx.default_device() == mx.Device(mx.cpu)
_PROCESSES = multiprocessing.get_context("forkserver" if _ON_CPU else "spawn")
if _ON_CPU:
    _PROCESSES.set_forkserver_preload(["mlxchat.train.pretrain"])  # each start is quick then


def train(kind: type[Stage[Any, Any]], home: str, settings: Mapping[str, object]) -> None:
    """Train to the end."""
    own = {name: value for name, value in settings.items() if name in kind.settings.model_fields}
    for _ in run_stage(kind(kind.settings.model_validate(own), Home(Path(home)))):
        pass


class KilledRuns:
    """Runs in folders below one, each killed again and again, compared with an undisturbed one.

    Args:
        folder: for their homes.
        settings: of the runs, beside `SETTINGS`.
        undisturbed: what else the one has that is not killed.
        kind: the stage of the runs.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        undisturbed: Mapping[str, object] | None = None,
        kind: type[Stage[Any, Any]] = Pretraining,
    ) -> None:
        self._folder, self._kind = folder, kind
        self._settings = {**SETTINGS, **settings}
        self._steps = int(str(self._settings["num_iterations"]))
        self._straight = folder / "straight"
        self._wait(self._start(self._straight, {**self._settings, **(undisturbed or {})}))
        begun = time.monotonic()
        self._wait(self._start(self._new_home("timed"), self._settings))
        self._seconds = time.monotonic() - begun  # of a start, the tokenizer being there

    def kill(self, kills: int, seed: int) -> Counter[str]:
        """Kill so many times; where the kills hit, and how many runs came to their end.

        Raises:
            AssertionError: a run did not resume, or did not end as the undisturbed one did.
        """
        order, counts = random.Random(seed), Counter[str]()
        while counts["kills"] < kills:
            home = self._new_home(f"{seed}-{counts['runs']}")
            for _ in range(MOST_STARTS):
                process = self._start(home, self._settings)
                if counts["kills"] < kills:
                    self._await_moment(process, home, order)
                    process.kill()
                process.join()
                if process.exitcode == 0:
                    break
                assert process.exitcode == -9, process.exitcode
                counts["kills"] += 1
                counts[self._found(home)] += 1
            self._compare(home)
            counts["runs"] += 1
        return counts

    def _start(self, home: Path, settings: Mapping[str, object]) -> BaseProcess:
        process = _PROCESSES.Process(target=train, args=(self._kind, str(home), settings))
        process.start()
        return process

    def _wait(self, process: BaseProcess) -> None:
        process.join()
        assert process.exitcode == 0, process.exitcode

    def _new_home(self, name: str) -> Path:
        """One that has a tokenizer already."""
        home = self._folder / name
        home.mkdir()
        for path in self._straight.glob("tokenizer*"):
            shutil.copytree(path, home / path.name)
        return home

    def _await_moment(self, process: BaseProcess, home: Path, order: random.Random) -> None:
        """Any moment of a start; two times of five one while a step is being written."""
        time.sleep(order.uniform(0, self._seconds))
        if order.random() < 0.4:
            while process.is_alive() and not self._unfinished(home):
                time.sleep(0.0005)
            time.sleep(order.uniform(0, 0.01))

    def _found(self, home: Path) -> str:
        """What the kill hit; whatever has the name of a step must be whole."""
        run = self._run(home)
        for step in store.steps(run):
            folder = store.directory(run, step)
            for name in files.files_with_checksums(folder):
                files.verify_file(folder / name)
        if self._unfinished(home):
            return "while a step was written"
        return "between" if store.steps(run) else "before a step was saved"

    def _compare(self, home: Path) -> None:
        run = self._run(home)
        ends = [store.directory(self._run(h), self._steps) for h in (self._straight, home)]
        for name in STATE:
            expected, found = (layout.read_arrays(end / name) for end in ends)
            assert expected.keys() == found.keys()
            for key in expected:
                assert mx.array_equal(expected[key], found[key]).item(), f"{home}: {name}, {key}"
        straight, killed = (read_trainer(end) for end in ends)
        assert killed.data == straight.data and killed.revision == straight.revision
        for name in killed.data:
            assert agree(killed.fingerprints[name], straight.fingerprints[name]), f"{home}: {name}"
        assert not self._unfinished(home)
        keep = int(str(self._settings["keep"]))
        assert len(store.steps(run)) >= keep
        assert len(store.old_steps(run, keep)) <= 1  # killed between the last save and its end
        lines = Home(home).log("run").read_text().splitlines()
        steps = [event["step"] for event in map(json.loads, lines) if event["event"] == "step"]
        assert steps == list(range(1, self._steps + 1)), f"{home}: steps as logged: {steps}"

    def _run(self, home: Path) -> Path:
        return Home(home).stage(self._kind.name) / "run"

    def _unfinished(self, home: Path) -> list[Path]:
        return list(self._run(home).glob(".unfinished*"))
