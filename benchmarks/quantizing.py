"""What quantization takes from a trained model's size, and from what it knows.

    python benchmarks/quantizing.py --model-tag d4 --eval-tokens 65536

Reads a checkpoint as `mlxchat quantize` does, with --model-tag, --step or --checkpoint, quantizes
it in every way and prints a table: bytes of its arrays as a share of the float32 model's, bits per
weight with scales and offsets, and bits per byte of the run's validation text. With --sensitivity
BITS it also quantizes to so few bits one block, or one kind of layers, at a time, and prints what
each of them costs.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import rounds

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.data.documents import Documents
from mlxchat.home import Home
from mlxchat.model.quantization import Format, Quantization, quantizable
from mlxchat.quantize import evaluate, quantize
from mlxchat.telemetry.events import Evaluated, Progressed
from mlxchat.train.stage import validation_documents
from mlxchat.ui.console import Screen

WAYS = (
    *(Quantization(bits=bits) for bits in (8, 6, 5)),
    *(Quantization(bits=4, group_size=size) for size in (32, 64, 128)),
    *(Quantization(bits=bits) for bits in (3, 2)),
    *(Quantization(bits=bits, mixed=True) for bits in (4, 3)),
    *(Quantization(mode=mode) for mode in ("mxfp8", "mxfp4", "nvfp4")),
)
PACKAGES = ("mlx",)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model-tag")
    parser.add_argument("--step", type=int)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--eval-tokens", type=int, default=65_536)
    parser.add_argument("--sensitivity", type=int, metavar="BITS")
    given = parser.parse_args()
    stages = Home.from_environment().stages
    source = catalog.locate(stages, given.model_tag, given.step, given.checkpoint)
    runtime.bound_buffer_cache()
    with (
        closing(validation_documents(source, Home.from_environment())) as documents,
        Screen(stream=sys.stderr) as screen,
    ):
        bench = _Bench(source, documents, given.eval_tokens, screen)
        rows = list(bench.ways())
        sensitive = list(bench.sensitivity(given.sensitivity)) if given.sensitivity else []
    print(
        f"{source.parent.name}/{source.name}, {bench.evaluated.tokens:,} validation tokens, "
        f"scales in {str(runtime.machine().compute_dtype).rpartition('.')[2]}; "
        f"{runtime.machine().device}, {rounds.listed(*PACKAGES)}.\n"
    )
    print(rounds.table(rows))
    if sensitive:
        print(f"\nThe same to {given.sensitivity} bits, one after another:\n")
        print(rounds.table(sensitive))


class _Bench:
    """A saved model and the text that it is measured on."""

    def __init__(self, source: Path, documents: Documents, tokens: int, screen: Screen) -> None:
        self._source, self._documents = source, documents
        self._tokens, self._screen, self._done = tokens, screen, 0
        saved = self._read()
        self.config = saved.model.config
        self.evaluated = self._evaluate(saved)

    def ways(self) -> Iterator[dict[str, str]]:
        """A row for the model as it is and one for each way to quantize it."""
        yield {
            "": "float32",
            "size": "1",
            "bits per weight": "32",
            "bits per byte": f"{self.evaluated.bits_per_byte:.4f}",
            "more": "",
        }
        for way in WAYS:
            yield self._row(way.name, way.formats(self.config))

    def sensitivity(self, bits: int) -> Iterator[dict[str, str]]:
        """A row for each group of layers that alone is quantized."""
        format = Format(group_size=64, bits=bits)
        for name, layers in _groups(layer.name for layer in quantizable(self.config)).items():
            yield self._row(name, dict.fromkeys(layers, format))

    def _row(self, name: str, formats: dict[str, Format]) -> dict[str, str]:
        saved = self._read()
        parts = quantize(saved.model, formats)
        before = sum(part.bytes_before for part in parts)
        after = sum(part.bytes_after for part in parts)
        bits = self._evaluate(saved).bits_per_byte
        return {
            "": name,
            "size": f"{after / before:.4f}",
            "bits per weight": f"{8 * after / sum(part.parameters for part in parts):.2f}",
            "bits per byte": f"{bits:.4f}",
            "more": f"{bits / self.evaluated.bits_per_byte - 1:+.2%}",
        }

    def _read(self) -> SavedModel:
        return layout.read_model(self._source, runtime.machine().compute_dtype)

    def _evaluate(self, saved: SavedModel) -> Evaluated:
        *_, result = evaluate(saved, self._documents, self._tokens)
        assert isinstance(result, Evaluated)
        self._done += 1
        self._screen.show(Progressed(time.time(), "models", self._done, None, "models"))
        return result


def _groups(layers: Iterable[str]) -> dict[str, list[str]]:
    """Layers of a kind, and of a block: ``attn.c_q``, ``block 0``, ``lm_head``."""
    groups: dict[str, list[str]] = {}
    for layer in layers:
        inside = re.fullmatch(r"transformer\.h\.(\d+)\.(.*)", layer)
        for name in (f"block {inside[1]}", inside[2]) if inside else (re.sub(r"\.\d+", "", layer),):
            groups.setdefault(name, []).append(layer)
    return groups


if __name__ == "__main__":
    rounds.explain(main)
