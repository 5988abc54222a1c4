"""`benchmarks/recipes.py`: what is run in which order, the compute multiplier, and the table."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.places import REPOSITORY

import mlxchat
from mlxchat.data.documents import ShardDocuments
from mlxchat.data.shards import LocalShards
from mlxchat.errors import MlxchatError

BENCHMARKS = REPOSITORY / "benchmarks"
STEPS = "--num-iterations=100"
CURVE = [(1e9, 3.0), (4e9, 2.0), (8e9, 1.5)]


@dataclass
class Scripts:
    candidates: Any
    judge: Any
    report: Any


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("candidates", "judge", "report")
    return Scripts(*(importlib.import_module(f"recipe_{name}") for name in names))


# ==== Candidates and their order ====


def test_seeds_take_turns_and_the_baseline_has_other_horizons(scripts: Scripts) -> None:
    both = [scripts.candidates.candidate(f"{name}=", STEPS) for name in "ab"]
    runs = scripts.candidates.order(both, 2, [1, 0.5, 4])
    assert [(run.candidate.name, run.seed, run.share, run.length) for run in runs] == [
        *(("a", 1, 1, 100), ("b", 1, 1, 100), ("a", 1, 0.5, 50), ("a", 1, 4, 400)),
        *(("a", 2, 1, 100), ("b", 2, 1, 100), ("a", 2, 0.5, 50), ("a", 2, 4, 400)),
    ]
    assert [str(run.folder) for run in runs[1:3]] == ["b/seed-1", "a@0.5/seed-1"]
    assert [str(run) for run in runs[1:3]] == ["b, seed 1", "a for 0.5 times its length, seed 1"]


def test_a_candidate_has_the_length_of_all_unless_it_has_its_own(scripts: Scripts) -> None:
    def options(text: str, default: str, share: float = 1) -> list[str]:
        each = scripts.candidates.candidate(text, default)
        return list(scripts.candidates.Run(each, 1, share).options)

    deep = "deep=--depth 6 --tokenizer-dir 'my words' --streaming"
    own = ["--depth", "6", "--tokenizer-dir", "my words", "--streaming"]
    assert options(deep, STEPS) == [*own, "--num-iterations=100"]
    assert options(deep, "--budget=10m", 0.25) == [*own, "--budget=2m30s"]
    assert options(f"{deep} --budget 1h", STEPS, 2) == [*own, "--budget=2h"]
    assert options(f"deep=--num-iterations=7 {deep[5:]}", "--budget=10m") == [
        *own,
        "--num-iterations=7",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("--depth 6", "not a name and options"),
        ("a b=--depth 6", "not a name and options"),
        ("deep=--tokenizer-dir 'my", "No closing quotation"),
        ("deep=--seed=3", "--seed=3 is not a candidate's to give"),
        ("deep=--budget soon", "'soon' is not a duration"),
    ],
)
def test_a_candidate_that_is_written_wrongly(scripts: Scripts, text: str, problem: str) -> None:
    with pytest.raises(MlxchatError, match=problem):
        scripts.candidates.candidate(text, STEPS)


# ==== The compute multiplier ====


@pytest.mark.parametrize(
    ("flops", "bits", "expected"),
    [
        (1e9, 2.5, ("", 2)),  # halfway between 1e9 and 4e9 in log FLOPs: 2e9
        (4e9, 2.0, ("", 1)),  # the baseline's own
        (1e9, 3.0, ("", 1)),
        (2e9, 1.5, ("", 4)),
        (2e9, 1.4, ("more than", 4)),  # better than the longest run
        (2e9, 3.1, ("less than", 0.5)),  # worse than the shortest
    ],
)
def test_the_multiplier_is_interpolated_and_bounded(
    scripts: Scripts, flops: float, bits: float, expected: tuple[str, float]
) -> None:
    relation, value = expected
    found = scripts.report.multiplier(reversed(CURVE), flops, bits)
    assert found == (relation, pytest.approx(value))


def test_of_a_bumpy_curve_the_first_part_that_gets_so_low_counts(scripts: Scripts) -> None:
    bumpy = [(1e9, 3.0), (2e9, 2.0), (4e9, 2.5), (8e9, 1.0)]
    assert scripts.report.multiplier(bumpy, 1e9, 2.5).value == pytest.approx(2**0.5)
    assert scripts.report.multiplier(bumpy, 1e9, 1.75).value == pytest.approx(2 ** (2 + 0.5))


# ==== The table ====


def result(name: str, bits: float, flops: float, **facts: object) -> dict[str, object]:
    return {
        "name": name,
        "seed": 1,
        "share": 1,
        "device": "an abacus",
        "vocab_size": 4096,
        "depth": 4,
        "width": 256,
        "context": 512,
        "parameters": 5_242_880,
        "tokens_per_step": 8192,
        "steps": 360,
        "tokens": 2_949_120,
        "tokens_per_second": 5000.0,
        "flops": flops,
        "times_seen": 0.5,
        "seconds": 606.0,
        "budget_share": 1.01,
        "bits_per_byte": bits,
        "samples": {"The city": f" of {name}\n\nis {bits}"},
        "identity": {"options": ["--arch", name, "--budget=10m"]},
        **facts,
    }


DATA = {"training_bytes": 18_000_000, "validation_bytes": 999_000, "validation_documents": 900}


def test_the_table_shows_means_spans_and_multipliers(scripts: Scripts) -> None:
    results = [
        result("old", 1.9, 4e9),
        result("new", 1.75, 2e9, steps=350),
        result("old", 2.1, 4e9, seed=2, seconds=612.0, budget_share=1.02),
        result("new", 1.75, 2e9, seed=2),
        result("old", 1.5, 8e9, share=2),
    ]
    summaries = scripts.report.summarised(["old", "new"], results)
    assert summaries[1]["multiplier"] == {"relation": "", "value": pytest.approx(2 * 2**0.5)}
    text = scripts.report.report(DATA, summaries, results, ["new, seed 3"])
    assert scripts.report.MEANING in text
    for line in (
        "|  | old | new |",
        "| vocabulary | 4,096 | 4,096 |",
        "| steps | 360 | 350 to 360 |",
        "| seconds of the whole process | 606.0 to 612.0 | 606.0 |",
        "| of the budget | 101.0% to 102.0% | 101.0% |",
        "| bits per byte, mean | **2.0000** | **1.7500** |",
        "| lowest to highest | 1.9000 to 2.1000 | 1.7500 |",
        "| compute multiplier | 1.00 | 2.83 |",
        "- old: `--arch old --budget=10m`, seeds 1, 2",
        "- old by multiples of its length: 1: 4e+09 FLOPs, 2.0000; 2: 8e+09 FLOPs, 1.5000",
        "- left out because they failed: new, seed 3",
    ):
        assert line in text.splitlines()
    assert text.startswith("an abacus; ")
    assert "> **The city** of old  is 1.9" in scripts.report.samples(summaries, results)


def test_without_horizons_or_budget_their_rows_are_left_out(scripts: Scripts) -> None:
    results = [result("old", 1.9, 4e9, budget_share=None)]
    text = scripts.report.report(
        DATA, scripts.report.summarised(["old", "new"], results), results, []
    )
    assert "multiplier" not in text
    assert "of the budget" not in text


# ==== Measuring a model ====


class Letters:
    """A tokenizer of bytes."""

    bos = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def test_every_token_is_predicted_once_from_those_before_it(scripts: Scripts) -> None:
    batches = scripts.judge.laid_out(["abcdefgh", "", "xyz"], Letters(), 5)
    rows = {}
    for batch in batches:
        for ids, targets in zip(batch.ids, batch.targets, strict=True):
            piece = bytes(targets[targets >= 0].tolist()).decode()
            rows[piece] = ids[: len(piece)].tolist()
            assert np.all(targets[len(piece) :] == -1)
    assert rows == {text: [256, *map(ord, text[:-1])] for text in ("abcde", "fgh", "xyz")}


@pytest.mark.slow
def test_candidates_are_trained_measured_and_kept(scripts: Scripts, tmp_path: Path) -> None:
    """The bits per byte are those of `Model.loss`, which measures one short text at a time."""
    texts = [json.dumps({"text": f"{n} and {n} are {2 * n}, not {n}."}) for n in range(1000)]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(texts))
    words = ["--depth 1 --vocab-size 300", "--max-seq-len 64 --total-batch-size 512"]
    keep, common = tmp_path / "keep", " ".join(words)
    command = [sys.executable, str(BENCHMARKS / "recipes.py"), f"--data={data}"]
    command += ["--steps=4", "--seeds=1", "--horizons", "0.5", f"--keep={keep}", "--json"]
    command += [f"low={common} --matrix-lr 0.001", f"high={common}"]
    home = {**os.environ, "MLXCHAT_HOME": str(tmp_path / "unused")}

    def run() -> Any:
        done = subprocess.run(command, env=home, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    found = run()
    assert [each["name"] for each in found["runs"]] == ["low", "high", "low"]
    assert [each["steps"] for each in found["runs"]] == [4, 4, 2]
    assert {each["tokens"] for each in found["runs"]} == {2048, 1024}
    model = mlxchat.load("run", home=keep / "high" / "seed-1")
    shards = ShardDocuments(LocalShards(Path(found["data"]["folder"])))
    validation = scripts.judge.validation_texts(shards, 10**6)
    losses = [(model.loss(text).bits_per_byte, len(text.encode())) for text in validation]
    expected = sum(bits * size for bits, size in losses) / sum(size for _, size in losses)
    assert found["runs"][1]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert found["data"]["validation_bytes"] == sum(size for _, size in losses)
    assert not (tmp_path / "unused").exists()
    assert run()["runs"] == found["runs"]
