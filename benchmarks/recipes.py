"""Which options of `mlxchat train` learn most in the same time, or in the same number of steps.

    python benchmarks/recipes.py --data ~/text --budget 10m --seeds 3 --keep ~/recipes \
        classic="--recipe classic" budget="--recipe budget" wide="--recipe budget --depth 6"
    python benchmarks/recipes.py --data ~/text --steps 300 --seeds 3 low="--matrix-lr 0.01" \
        high="--matrix-lr 0.04"
    python benchmarks/recipes.py --data ~/text --budget 10m --horizons 0.5 2 4 --sample \
        budget="" long="--max-seq-len 1024"

A candidate is NAME="OPTIONS", the options being those of `mlxchat train`; the first one is the
baseline. Each trains once for each seed, one after another, in turns: A B C, then A B C with the
next seed, so that a slow hour meets them all alike. Every run is a process of its own with an empty
MLXCHAT_HOME: it trains a tokenizer, unless --tokenizer-dir is among its options, and measures the
machine, all within its budget. A run that fails is named and left out.

Every model is then measured on the same validation text: each byte is predicted once, in pieces as
long as the model's context, each after <|bos|>.

With --horizons the baseline also trains for these multiples of its time or steps. The compute
multiplier of a candidate is how many times its FLOPs the baseline needs for the same bits per byte,
interpolated in log FLOPs between the baseline's runs; beyond them only a bound is told. A candidate
that is better than the baseline needs horizons above 1.

With --keep, models and results stay in a folder (in NAME/seed-1/result.json and so on), and what
has finished is not repeated when the same command runs again. To talk to one of them:
MLXCHAT_HOME=~/recipes/wide/seed-1 mlxchat chat
"""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import rounds
from recipe_candidates import Candidate, Run, candidate, order
from recipe_judge import TAG, judged, size, validation_texts
from recipe_report import PACKAGES, Result, report, samples, summarised

from mlxchat.config.units import spell_duration
from mlxchat.data.documents import ShardDocuments
from mlxchat.data.shards import LocalShards, shard_names
from mlxchat.errors import MlxchatError
from mlxchat.home import Home, expanded

TEXT = "text"  # the dataset that --data becomes, unless it is shards
RESULT = "result.json"
UNFINISHED = ".unfinished"
TIME_ENOUGH = 600  # seconds, or steps, for a plan of any candidate


def main() -> None:
    """Read the options, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("candidates", nargs="*", metavar='NAME="OPTIONS"', help="of mlxchat train")
    parser.add_argument(
        "--data",
        type=expanded,
        required=True,
        metavar="PATH",
        help="a folder of shards, as train --data-dir takes it; or text, as data fetch --from does",
    )
    parser.add_argument("--budget", help="of all candidates that give no other, such as 10m")
    parser.add_argument("--steps", type=rounds.positive, help="instead of a budget")
    parser.add_argument("--seeds", type=rounds.positive, default=3, help="runs of each candidate")
    parser.add_argument(
        "--horizons",
        type=_share,
        nargs="+",
        default=[],
        metavar="X",
        help="train the baseline for these multiples as well (another option must follow)",
    )
    parser.add_argument("--keep", type=expanded, metavar="FOLDER", help="keep it all, and continue")
    parser.add_argument(
        "--validation-bytes",
        type=rounds.positive,
        default=1_000_000,
        metavar="N",
        help="whole documents of so many bytes in all; default: 1,000,000",
    )
    parser.add_argument("--sample", action="store_true", help="show what the best models write")
    parser.add_argument("--json", action="store_true", help="everything measured, no table")
    given = parser.parse_args()
    if not given.candidates or (given.budget is None) == (given.steps is None):
        parser.error("candidates are needed, and either --budget or --steps")
    try:
        compare(given)
    except KeyboardInterrupt:
        sys.exit(f"Interrupted.{' The same command goes on.' if given.keep else ''}")


def compare(given: argparse.Namespace) -> None:
    """Carry out all runs, and print what came out."""
    default = f"--budget={given.budget}" if given.budget else f"--num-iterations={given.steps}"
    candidates = [candidate(text, default) for text in given.candidates]
    if len({each.name for each in candidates}) < len(candidates):
        raise MlxchatError("Two candidates have the same name.", "Give each its own.")
    with workplace(given.keep) as root:
        shards = as_shards(given.data, root)
        data = measured_data(shards, given.validation_bytes)
        runs = order(candidates, given.seeds, given.horizons)
        kept = {run: finished(root, run, data) for run in runs}
        ahead = [run for run in runs if not kept[run]]
        check(dict.fromkeys(run.candidate for run in ahead), shards)
        budgets = spell_duration(sum(run.budget or 0 for run in ahead))
        tell(f"{len(ahead)} of {len(runs)} runs to do{budgets and f'; their budgets: {budgets}'}")
        results, failed = [], []
        for number, run in enumerate(runs, 1):
            tell(f"[{number} of {len(runs)}] {run}: {shlex.join(run.options)}")
            result = kept[run] or carry_out(root, run, shards, data)
            if result is None:
                failed.append(str(run))
                continue
            tell(
                f"{run}: {result['bits_per_byte']:.4f} bits per byte after {result['steps']:,} "
                f"steps, {result['seconds']:.1f} s"
            )
            results.append(result)
            if not given.keep:
                shutil.rmtree(root / run.folder)
    if not results:
        raise MlxchatError("No run finished.", "What they said of it is above.")
    summaries = summarised([each.name for each in candidates], results)
    if given.json:
        found = {
            "settings": {name: str(value) for name, value in vars(given).items()},
            "date": date.today().isoformat(),
            "data": data,
            "versions": rounds.versions(*PACKAGES),
            "candidates": summaries,
            "runs": results,
            "failed": failed,
        }
        print(json.dumps(found))
    else:
        print(report(data, summaries, results, failed))
        if given.sample:
            print(samples(summaries, results))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number; write candidates before --horizons, or an option between"
        ) from error
    if not 0 < share < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no multiple to train for")
    return share


# ==== Running ====


def tell(line: str) -> None:
    """Say what is going on, on standard error."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """Yield the folder of all runs, which is removed afterwards unless it is to be kept."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def in_home(home: Path, *words: str, quiet: bool = False) -> int:
    """Run `mlxchat` with a home of its own; returns its status.

    Its standard output is shown on standard error, or, if ``quiet``, not at all.
    """
    return subprocess.run(
        [sys.executable, "-m", "mlxchat", *words],
        env={**os.environ, "MLXCHAT_HOME": str(home)},
        stdout=subprocess.DEVNULL if quiet else sys.stderr,
        check=False,
    ).returncode


def as_shards(data: Path, root: Path) -> Path:
    """Return the folder of shards that ``--data`` is, or that its text is made into."""
    if data.is_dir() and shard_names(data):
        return data.absolute()
    home = Home(root / "data@")  # no candidate is named so
    folder = home.data(TEXT)
    if not folder.exists() and in_home(
        home.root, "data", "fetch", f"--from={data}", f"--dataset={TEXT}"
    ):
        raise MlxchatError(f"{data} cannot be used as data.", "What it lacks is said above.")
    return folder


def measured_data(shards: Path, limit: int) -> dict[str, Any]:
    """Return the bytes of the text that is trained on, and of the text that models are judged on.

    Raises:
        MlxchatError: there are no shards, or no validation text.
    """
    documents = ShardDocuments(LocalShards(shards))
    validation = validation_texts(documents, limit)
    if not validation:
        raise MlxchatError(f"The last shard of {shards} holds no text.", "Use other data.")
    return {
        "folder": str(shards),
        "training_bytes": sum(map(size, documents.texts())),
        "validation_bytes": sum(map(size, validation)),
        "validation_documents": len(validation),
    }


def check(candidates: Iterable[Candidate], shards: Path) -> None:
    """Plan candidates before any is trained, which might take hours.

    They are given time enough: without a tokenizer a plan presumes a larger vocabulary, so steps
    that take longer, than the run may have.

    Raises:
        MlxchatError: `mlxchat train` refuses the options of one.
    """
    for each in candidates:
        options = Run(replace(each, length=max(each.length, TIME_ENOUGH)), 1).options
        tell(f"{each.name}: looking at its options")
        words = ["train", "--dry-run", *options, f"--data-dir={shards}"]
        with tempfile.TemporaryDirectory() as home:
            status = in_home(Path(home), *words, quiet=True)
        if status:
            raise MlxchatError(
                f"{each.name} cannot train: {shlex.join(options)}", "Why not is said above."
            )


def identity(run: Run, data: dict[str, Any]) -> dict[str, Any]:
    """Return all that a result depends on, to tell whether one that was kept still counts."""
    return {
        "options": run.options,
        "seed": run.seed,
        "data": data,
        "versions": rounds.versions(*PACKAGES),
    }


def finished(root: Path, run: Run, data: dict[str, Any]) -> Result | None:
    """Return the result of a run that was kept; None if it has not finished.

    Raises:
        MlxchatError: the one in its folder had other options, data or versions.
    """
    path = root / run.folder / RESULT
    if not path.exists():
        return None
    result: Result = json.loads(path.read_text("utf-8"))
    for name, now in identity(run, data).items():
        if result["identity"][name] != now:
            raise MlxchatError(
                f"{path} is of a run with other {name}: {result['identity'][name]}, not {now}.",
                "Name the candidate otherwise, or give another folder with --keep.",
            )
    return result


def carry_out(root: Path, run: Run, shards: Path, data: dict[str, Any]) -> Result | None:
    """Train and measure; returns None if training fails.

    It happens in a folder that gets its name at the end, so one that was interrupted starts anew.
    """
    folder = root / run.folder
    home = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(home, ignore_errors=True)
    begun = time.monotonic()
    status = in_home(
        home,
        *("train", "--keep=1", *run.options),
        *(f"--model-tag={TAG}", f"--seed={run.seed}", f"--data-dir={shards}"),
    )
    seconds = time.monotonic() - begun
    if status:
        tell(f"{run}: ended with status {status}; it is left out.")
        return None
    result = {
        "name": run.candidate.name,
        "seed": run.seed,
        "share": run.share,
        "seconds": seconds,
        "budget": run.budget,
        **trained(Home(home).log(TAG).read_text("utf-8").splitlines()),
        **judged(home, shards, data["validation_bytes"]),
        "identity": identity(run, data),
    }
    bytes_per_token = data["validation_bytes"] / result["validation_tokens"]
    result["flops"] = result["tokens"] * result["flops_per_token"]
    result["budget_share"] = run.budget and seconds / run.budget
    result["times_seen"] = result["tokens"] * bytes_per_token / data["training_bytes"]
    (home / RESULT).write_text(json.dumps(result), "utf-8")
    home.rename(folder)
    return result


def trained(log: Sequence[str]) -> dict[str, Any]:
    """Return what the log of a finished run says of its training."""
    events = [json.loads(line) for line in log]
    started = next(event for event in events if event["event"] == "started")
    steps = [event for event in events if event["event"] == "step"]
    tokens = started["tokens_per_step"] * len(steps)
    return {
        "device": started["device"],
        "parameters": started["parameters"],
        "tokens_per_step": started["tokens_per_step"],
        "steps": len(steps),
        "tokens": tokens,
        "tokens_per_second": tokens / sum(step["seconds"] for step in steps),
    }


if __name__ == "__main__":
    rounds.explain(main)
