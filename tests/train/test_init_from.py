"""Pretraining that begins with the weights of an existing model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.models import BYTES
from typer.testing import CliRunner

from mlxchat.checkpoint import layout
from mlxchat.cli.app import app
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Quantization
from mlxchat.quantize import quantize
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated
from mlxchat.train.base import with_shape_of_base
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.stage import read_trainer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return model(tmp_path / "source")


def model(folder: Path, bits: int | None = None, **shape: Any) -> Path:
    """A model's directory, as an import or another program leaves it."""
    config = GPTConfig.from_depth(1, BYTES.vocab_size, 32, arch=shape.pop("arch", "classic"))
    network = GPT.new(GPTConfig(**(config.model_dump() | shape)), seed=3, dtype=mx.float32)
    network.lm_head.weight = 0.3 * mx.random.normal(network.lm_head.weight.shape)
    if bits:
        quantize(network, Quantization(bits=bits).formats(network.config))
    folder.mkdir()
    layout.write_model(folder, network, BYTES, conversational=False)
    return folder


def config(source: object, **settings: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "init_from": str(source), "dataset": "builtin", "device_batch_size": 4,
            "total_batch_size": 256, "num_iterations": 2, "eval_every": 2, "eval_tokens": 256,
            "sample_every": 0, "save_every": 1,
        }
        | settings
    )  # fmt: skip


def test_training_starts_from_the_models_weights(source: Path) -> None:
    """With learning rates that change nothing, the saved weights are the model's."""
    still = {"embedding_lr": 1e-30, "unembedding_lr": 1e-30, "matrix_lr": 1e-30}
    events = list(run_pretraining(config(source, **still), Home.from_environment(), lambda _: None))
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 2]
    folder = Home.from_environment().runs / "source-continued" / "step_000002"
    before = layout.read_model(source, mx.float32)
    after = layout.read_model(folder, mx.float32)
    assert after.model.config == before.model.config
    expected = before.model.named_parameters()
    for name, array in after.model.named_parameters().items():
        assert mx.allclose(array, expected[name], rtol=0, atol=1e-20)
    assert after.tokenizer.encode("the cat") == BYTES.encode("the cat")
    assert read_trainer(folder).settings.init_from == str(source)


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_the_run_takes_over_the_models_shape(arch: Any, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", arch=arch)
    settled = with_shape_of_base(config(folder), Home.from_environment())
    assert (settled.arch, settled.depth, settled.max_seq_len) == (arch, 1, 32)
    assert settled.tokenizer_dir == folder


def test_it_resumes_without_its_source(source: Path) -> None:
    home = Home.from_environment()
    stopped = config(source, save_every=1)
    run = run_pretraining(
        stopped, home, lambda _: None, stop=lambda: (home.runs / stopped.tag).exists()
    )
    list(run)
    shutil.rmtree(source)
    list(run_pretraining(stopped, home, lambda _: None))
    assert (home.runs / stopped.tag / "step_000002").exists()


@pytest.mark.slow
def test_init_from_accepts_the_name_of_a_run(source: Path) -> None:
    home = Home.from_environment()
    list(run_pretraining(config(source, model_tag="first"), home, lambda _: None))
    list(run_pretraining(config("first"), home, lambda _: None))
    assert (home.runs / "first-continued" / "step_000002").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"depth": 2}, "`depth=2`"),
        ({"arch": "modern"}, "`arch=modern`"),
        ({"max_seq_len": 64}, "`max_seq_len=64`"),
        ({"head_dim": 32}, "`head_dim=32`"),
        ({"vocab_size": 300}, "`vocab_size=300`"),
        ({"tokenizer_dir": "/elsewhere"}, "`tokenizer_dir=/elsewhere`"),
    ],
)
def test_settings_that_contradict_the_model_are_refused(
    settings: dict[str, Any], said: str, source: Path
) -> None:
    with pytest.raises(MlxchatError, match=said) as caught:
        with_shape_of_base(config(source, **settings), Home.from_environment())
    assert caught.value.remedy == "Leave it out."


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"n_embd": 96, "n_head": 1, "n_kv_head": 1}, "n_embd is 96, not 64"),
        ({"n_head": 2, "n_kv_head": 1}, "n_kv_head is 1, not 2"),
        ({"softcap": 20.0}, "softcap is 20.0, not 15.0"),
        (
            {"arch": "modern", "era": "gates_32", "n_embd": 128, "n_head": 1, "n_kv_head": 1},
            "era is gates_32, not modern",
        ),
    ],
)
def test_shapes_that_pretraining_does_not_have_are_refused(
    shape: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(MlxchatError, match=said) as caught:
        with_shape_of_base(config(model(tmp_path / "m", **shape)), Home.from_environment())
    assert "mlxchat sft --source" in caught.value.remedy


def test_quantized_and_missing_models_are_refused(tmp_path: Path) -> None:
    home = Home.from_environment()
    with pytest.raises(MlxchatError, match="is quantized"):
        with_shape_of_base(config(model(tmp_path / "m", bits=8)), home)
    with pytest.raises(MlxchatError, match="no trained model"):
        with_shape_of_base(config("nowhere"), home)


@pytest.mark.parametrize("command", [["info"], ["train", "--dry-run"]])
def test_info_and_dry_run_use_the_models_shape(command: list[str], source: Path) -> None:
    result = CliRunner().invoke(
        app,
        [*command, "--init-from", str(source), "--dataset", "builtin", "--json", "--num-iterations",
         "2", "--total-batch-size", "256"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["plan"]["model"]["n_embd"] == 64 and found["vocabulary_from"] == "tokenizer"
