"""Saved steps whose files are small."""

import json
from pathlib import Path

from mlxchat.checkpoint import store


def put_step(run: Path, step: int, quantized: bool = False) -> Path:
    """A step with files that are small, as `store.save` leaves it."""

    def write(folder: Path) -> None:
        config = {"quantization": {"group_size": 64, "bits": 4}} if quantized else {}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(bytes(1000))
        if not quantized:
            (folder / "trainer.json").write_text('{"format": 4}')

    return store.save(run, step, write)
