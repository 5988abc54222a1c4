"""Checkpoints whose files are small."""

import json
import time
from pathlib import Path

from mlxchat.checkpoint import store


def put_step(
    run: Path,
    step: int,
    quantized: bool = False,
    saved: float | None = None,
    began_with: str | None = None,
) -> Path:
    """A step with files that are small, as `store.save` leaves it.

    ``saved`` is its time, now by default, and ``began_with`` the run whose model at the same step
    it was made from.
    """

    def write(folder: Path) -> None:
        config = {"quantization": {"group_size": 64, "bits": 4}} if quantized else {}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(bytes(1000))
        if not quantized:
            (folder / "trainer.json").write_text('{"format": 4}')
        if began_with is not None:
            (folder / "history.json").write_text(json.dumps({"tag": began_with, "step": step}))

    return store.save(run, step, write, clock=time.time if saved is None else lambda: saved)
