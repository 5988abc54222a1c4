"""Weights in safetensors files of a bounded size, with an index if there are several.

The names of the files and the form of the index are Hugging Face's.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxchat.checkpoint.layout import INDEX, MODEL
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

LARGEST_FILE = 5 * 10**9  # bytes; the limit of the hub's own programs

ReportBytes = Callable[[int, int], None]  # gets the bytes that are done, and all there are


@dataclass(frozen=True)
class WeightWriter:
    """Writes tensors into one file or several.

    Attributes:
        limit: the most bytes of a file; a larger tensor gets a file of its own.
        report: called after each file.
    """

    limit: int
    report: ReportBytes

    def write(self, folder: Path, tensors: Mapping[str, mx.array], form: str) -> None:
        """Write tensors by name.

        Args:
            folder: an existing folder.
            tensors: the arrays by name.
            form: the ``format`` in the files' metadata, ``mlx`` or ``pt``.

        Raises:
            OSError, RuntimeError: a file cannot be written.
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
        """Yield the names of the tensors of each file."""
        names, held = list[str](), 0
        for name, size in sizes.items():
            if names and held + size > self.limit:
                yield names
                names, held = [], 0
            names.append(name)
            held += size
        yield names


def cast_matrices(model: GPT, dtype: mx.Dtype) -> None:
    """Cast a model's matrices in place, including the scales of quantized ones.

    Vectors and scalars keep their type. The matrices are cast one by one, so that two copies of the
    model are never in memory.
    """
    parameters = model.named_parameters()
    for name in list(parameters):
        array = parameters.pop(name)
        if array.ndim > 1 and mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
            mx.eval(array)
            model.load_weights([(name, array)], strict=False)
            mx.clear_cache()  # else MLX keeps the memory of the old one
