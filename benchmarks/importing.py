"""What importing a model takes: peak memory beside the model's own size, and time.

    python benchmarks/importing.py FOLDER --depth 20

Writes a checkpoint as nanochat would have it, of that depth and with numbers of no meaning, into
the folder (2.2 GB with depth 20), imports it in a process of its own, and removes both.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mlxchat.interop import nanochat_files, torch_file
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.size import parameters
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

VOCABULARY = 65_536


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--arch", choices=["classic", "modern"], default="classic")
    asked = parser.parse_args()
    base = asked.folder / "importing"
    try:
        write(base, GPTConfig.from_depth(asked.depth, VOCABULARY, 2048, arch=asked.arch))
        measure(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def write(base: Path, config: GPTConfig) -> None:
    """A checkpoint of nanochat's with its tokenizer."""
    folder = base / nanochat_files.BASE / f"d{config.n_layer}"
    folder.mkdir(parents=True)
    (base / nanochat_files.TOKENIZER_FOLDER).mkdir()
    fields = (
        nanochat_files.FIELDS
        if config.arch == "classic"
        else (*nanochat_files.FIELDS, nanochat_files.WINDOWS_FIELD)
    )
    meta = {"model_config": {name: getattr(config, name) for name in fields}}
    (folder / nanochat_files.meta_file(1)).write_text(json.dumps(meta), "utf-8")
    torch_file.write_torch(folder / nanochat_files.model_file(1), GPT(config).named_parameters())
    ranks = {bytes([byte]): byte for byte in range(256)}
    merged = VOCABULARY - len(SPECIAL_TOKENS) - len(ranks)
    ranks |= {b"%06d" % number: 256 + number for number in range(merged)}
    special = {name: len(ranks) + number for number, name in enumerate(SPECIAL_TOKENS)}
    path = base / nanochat_files.TOKENIZER_FOLDER / nanochat_files.TOKENIZER
    nanochat_files.write_tokenizer(path, Tokenizer(ranks, SPLIT_PATTERN, special))
    size = sum(parameters(config).values())
    print(f"{size:,} parameters, {4 * size / 1e9:.2f} GB in float32")


def measure(base: Path) -> None:
    """Import it, and tell what that took."""
    [folder] = (base / nanochat_files.BASE).iterdir()
    command = ["mlxchat", "import", str(folder), "--json"]
    begun = time.monotonic()
    home = os.environ | {"MLXCHAT_HOME": str(base / "home")}
    subprocess.run(command, env=home, check=True, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    print(f"{peak / 1e9:.2f} GB of memory at most, {seconds:.0f} s")


if __name__ == "__main__":
    main()
