"""Every command that uses a model takes a run with an adapter, and a command makes it whole."""

from pathlib import Path
from typing import Any

import pytest
from support.adapted import LORA, adapter_run, base_run, logits
from support.models import network
from typer.testing import CliRunner

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.bases import require_base
from mlxchat.cli.app import app
from mlxchat.home import Home
from mlxchat.interop.importers import open_model
from mlxchat.interop.importers.model import read_network
from mlxchat.json_text import parse_json
from mlxchat.model.quantization import Quantization
from mlxchat.model.quantized import formats_of
from mlxchat.quantize import quantize
from mlxchat.runtime import mx


def run(*arguments: object) -> Any:
    """What a command prints as JSON, or its text if it is none."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    return parse_json(result.stdout) if "--json" in arguments else result.stdout


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code != 0
    return f"{result.output}{result.exception}"


@pytest.fixture
def adapted(home: Path) -> Path:
    """The step of a run called cow, with an adapter on d2."""
    place = Home(home)
    return adapter_run(place, base_run(place, network(64)), "cow")


@pytest.fixture
def on_quantized(home: Path) -> Path:
    """The step of a run called small, with an adapter on a model of 4 bits."""
    saved = network(64)
    quantize(saved.model, Quantization(bits=4, group_size=32).formats(saved.model.config))
    return adapter_run(Home(home), base_run(Home(home), saved, "d2-4bit"), "small")


def test_fuse_makes_a_whole_model_that_computes_the_same(adapted: Path) -> None:
    facts = run("fuse", "--model-tag", "cow", "--json")
    folder = Path(facts["path"])
    assert folder.parts[-3:] == ("chatsft_checkpoints", "cow-fused", "step_000006")
    assert facts["bits_per_byte_before"] is None and not facts["quantized"]
    assert facts["bytes_after"] == (folder / layout.MODEL).stat().st_size
    assert facts["bytes_before"] > facts["bytes_after"]
    whole, before = (layout.read_model(path, mx.float32) for path in (folder, adapted))
    assert whole.base is None and whole.model.adapter is None and whole.conversational
    expected = logits(before.model)
    assert mx.abs(logits(whole.model) - expected).max() < 1e-5 * mx.abs(expected).max()
    assert "already a fused copy" in refused("fuse", "--model-tag", "cow")
    assert "no adapter to merge" in refused("fuse", "--model-tag", "d2")


@pytest.mark.parametrize("kept", [False, True])
def test_fuse_makes_a_quantized_model_plain_unless_told_otherwise(
    kept: bool, on_quantized: Path
) -> None:
    facts = run("fuse", "--json", *(["--keep-quantized"] if kept else []))
    assert facts["quantized"] is kept
    before = layout.read_model(on_quantized, mx.float32).model
    whole = layout.read_model(Path(facts["path"]), mx.float32).model
    assert len(formats_of(whole)) == (len(formats_of(before)) if kept else 0)
    expected = logits(before)
    error = (mx.abs(logits(whole) - expected).max() / mx.abs(expected).max()).item()
    assert error > 1e-3 if kept else error < 1e-5


def test_quantize_fuses_first(adapted: Path) -> None:
    result = CliRunner().invoke(app, ["quantize", "--bits", "8", "--group-size", "32", "--json"])
    assert "merged into the weights first" in result.stderr
    facts = parse_json(result.stdout)
    assert Path(facts["path"]).parent.name == "cow-8bit-g32"
    small = layout.read_model(Path(facts["path"]), mx.float32).model
    expected = logits(layout.read_model(adapted, mx.float32).model)
    assert mx.abs(logits(small) - expected).max() < 0.1 * mx.abs(expected).max()
    base = layout.read_model(require_base(adapted), mx.float32)
    assert mx.abs(logits(base.model) - expected).max() > 0.2 * mx.abs(expected).max()


def test_commands_answer_as_the_fused_model(adapted: Path) -> None:
    folder = run("fuse", "--json")["path"]
    text = adapted / "text.txt"
    text.write_text("The cow says moo, and the hen does not.", "utf-8")
    for command in (
        "chat --prompt Hi --temperature 0 --max-tokens 12",
        "eval chat --tasks spelling --max-problems 2 --max-tokens 4",
        f"eval base --text {text}",
    ):
        words = (*command.split(), "--json", "--checkpoint")
        results = [run(*words, place) for place in (adapted, folder)]
        for result in results:
            for of_the_model in ("model", "kept"):  # a name, and the file for its results
                result.pop(of_the_model, None)
            for measured in result.get("texts", ()):
                for name in ("loss", "bits_per_byte", "perplexity"):
                    measured[name] = pytest.approx(measured[name], rel=1e-5)
        assert results[0] == results[1], command


def test_steps_with_adapters_are_listed_and_verified(adapted: Path) -> None:
    listed = run("checkpoints", "list", "--json")
    assert {each["tag"]: each["base"] for each in listed} == {"cow": "d2", "d2": None}
    assert "adapter on d2" in run("checkpoints", "list")
    run("checkpoints", "verify")
    (adapted / "adapters.safetensors").write_bytes(b"")
    assert "adapters.safetensors" in refused("checkpoints", "verify")


@pytest.mark.parametrize("program", ["mlx-lm", "transformers", "nanochat"])
def test_an_export_has_the_adapter_in_its_weights(
    program: str, adapted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("export", "--to", program, "--out", out)
    folder = out / "chatsft_checkpoints" / "cow" if program == "nanochat" else out
    expected = logits(layout.read_model(adapted, mx.float32).model)
    found = logits(read_network(open_model(folder)))
    assert mx.abs(found - expected).max() < 1e-5 * mx.abs(expected).max()


def test_an_adapter_goes_to_peft_and_comes_back(adapted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    facts = run("export", "--to", "peft", "--out", out, "--json")
    assert any("d2-transformers" in line for line in facts["commands"])
    assert "LoRA of rank 2, scale 2, on `d2`" in (out / "README.md").read_text("utf-8")
    names = {path.name for path in out.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    settings = parse_json((out / "adapter_config.json").read_bytes())
    assert (settings["r"], settings["lora_alpha"]) == (LORA.rank, LORA.rank * LORA.scale)
    facts = run("import", out, "--onto", "d2", "--model-tag", "back", "--json")
    assert (facts["program"], facts["rank"], facts["conversational"]) == ("peft", 2, True)
    back, before = (layout.read_model(path, mx.float32) for path in (Path(facts["path"]), adapted))
    assert back.base == before.base
    assert mx.array_equal(logits(back.model), logits(before.model))
    assert "model has no adapter" in refused("export", "--to", "peft", "--model-tag", "d2")
    assert "in float32" in refused("export", "--to", "peft", "--dtype", "float16")


def test_an_adapter_on_a_quantized_model_goes_to_peft_for_the_model_it_was_made_from(
    on_quantized: Path, tmp_path: Path
) -> None:
    run("export", "--to", "peft", "--model-tag", "small", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "d2-4bit, is quantized, which transformers cannot read" in card
    assert "--model-tag d2-4bit" not in card  # that export would be refused


def test_an_adapter_from_elsewhere_is_fused_into_a_run_of_its_stage(
    adapted: Path, tmp_path: Path
) -> None:
    stick = adapted.rename(tmp_path / "stick")
    facts = run("fuse", "--checkpoint", stick, "--json")
    assert Path(facts["path"]).parts[-3:] == ("chatsft_checkpoints", "stick-fused", "step_000000")


def test_an_adapter_of_ours_is_put_on_another_model_only_by_force(
    adapted: Path, home: Path
) -> None:
    other = base_run(Home(home), network(64, seed=2), "other")
    put = ("import", adapted, "--onto", "other", "--model-tag", "moved")
    assert "differ from those of other, step 4" in refused(*put)
    folder = Path(run(*put, "--force", "--json")["path"])
    moved, model = (layout.read_model(path, mx.float32).model for path in (folder, other))
    assert not mx.allclose(logits(moved), logits(model))
    assert require_base(folder) == other
    assert run("import", adapted, "--onto", "d2", "--model-tag", "copy", "--json")["rank"] == 2


def test_what_an_adapter_needs_for_its_import_is_said(adapted: Path, tmp_path: Path) -> None:
    assert "`onto=RUN`" in refused("import", adapted)
    assert "whole models" in refused("import", adapted, "--onto", "d2", "--softcap", "15")
    assert "no adapter in" in refused("import", tmp_path, "--onto", "d2")
    assert "applies to adapters" in refused("import", tmp_path, "--force")
    assert "contains an adapter" in refused("import", adapted, "--onto", "cow")
    (adapted / "adapters.safetensors").unlink()
    said = refused("import", adapted, "--onto", "d2")
    assert "is missing" in said and "mlxchat import" not in said
    (adapted / "adapter_config.json").write_text("{}")
    for onto in ((), ("--onto", "d2")):
        assert "describes no adapter" in refused("import", adapted, *onto)
    (adapted / "adapter_config.json").write_text("")
    assert "is damaged" in refused("import", adapted)


def test_serve_refuses_what_is_not_an_adapter_of_the_model(adapted: Path, home: Path) -> None:
    other = base_run(Home(home), network(64, seed=2), "other")
    adapter_run(Home(home), other, "hen")
    serve = ("serve", "--port", "0")
    assert "not an adapter" in refused(*serve, "--adapter", "other")
    two = refused(*serve, "--adapter", "cow", "--adapter", "hen")
    assert "is an adapter of other, step 4" in two
    assert "are called cow" in refused(*serve, "--adapter", "cow", "--adapter", "cow")
    alike = refused(*serve, "--adapter", "d2=cow")
    assert "are called d2" in alike and "`adapter=NAME=RUN`" in alike
    for incomplete in ("=cow", "hat=", ""):
        assert "is missing a name or a run" in refused(*serve, "--adapter", incomplete)
    assert "adapters cannot be stacked" in refused(*serve, "--model-tag", "cow", "--adapter", "hen")
    place = adapted.rename(adapted.with_name("step=6"))
    named = ("--adapter", f"hat={place}", "--adapter", "hat=hen")
    assert "are called hat" in refused(*serve, *named)
