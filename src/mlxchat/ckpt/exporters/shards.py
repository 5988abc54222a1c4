"""Safetensors in files of a bounded size, with an index where there are several.

Names of the files and form of the index are Hugging Face's.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxchat.checkpoint.layout import INDEX, MODEL
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

MOST_BYTES = 5 * 10**9  # what the hub's programs write in one file

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Shards:
    """How tensors are written.

    Args:
        limit: bytes of a file, unless one tensor has more.
        report: is told the bytes written, and of all.
    """

    limit: int
    report: Report

    def write(self, folder: Path, tensors: Mapping[str, mx.array], form: str) -> None:
        """Write tensors by name.

        Args:
            form: what the files' metadata call it, ``mlx`` or ``pt``.

        Raises:
            OSError, RuntimeError: they cannot be written.
        """
        sizes = {name: array.nbytes for name, array in tensors.items()}
        files = list(self._files(sizes))
        total, done, places = sum(sizes.values()), 0, {}
        for number, names in enumerate(files, 1):
            file = MODEL
            if len(files) > 1:
                file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            shard = {name: tensors[name] for name in names}
            mx.save_safetensors(str(folder / file), shard, {"format": form})
            places.update(dict.fromkeys(names, file))
            done += sum(sizes[name] for name in names)
            self.report(done, total)
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (folder / INDEX).write_text(json.dumps(index, indent=2), "utf-8")

    def _files(self, sizes: Mapping[str, int]) -> Iterator[list[str]]:
        names, held = list[str](), 0
        for name, size in sizes.items():
            if names and held + size > self.limit:
                yield names
                names, held = [], 0
            names.append(name)
            held += size
        yield names


def cast_matrices(model: GPT, dtype: mx.Dtype) -> None:
    """Hold a model's matrices in a dtype, the scales of quantized ones among them; vectors and
    scalars stay as they are.

    One after another: the old and the new model are never held together.
    """
    parameters = model.named_parameters()
    for name in list(parameters):
        array = parameters.pop(name)
        if array.ndim > 1 and mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
            mx.eval(array)
            model.load_weights([(name, array)], strict=False)
            mx.clear_cache()  # else MLX keeps what the old one had
