"""Models written for other programs: names, shapes and values, and what is written beside them."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from foreign_models import (
    TOKENIZER,
    assert_reference_logits,
    config,
    saved,
    weights,
    write_nanochat,
)
from typer.testing import CliRunner

from mlxchat.ckpt import exporters, layout, torch_file
from mlxchat.ckpt.exporters import history
from mlxchat.ckpt.exporters.history import History
from mlxchat.ckpt.importers import open_model
from mlxchat.ckpt.importers.foreign_model import network
from mlxchat.ckpt.layout import SavedModel
from mlxchat.cli.app import app
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.eras import ERAS
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.train.pretrain import pretrain
from mlxchat.train.settings import PretrainConfig

HISTORY = History("d4", 7)


def run(home: Home, arch: str, base: Path, stage: str = "base_checkpoints") -> Path:
    """The reference model as a run called d4."""
    source = write_nanochat(base, arch, stage=stage)
    result = CliRunner().invoke(app, ["import", str(source)])
    assert result.exit_code == 0, result.output
    return home.run("d4") / "step_000007"


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("conversational", [False, True])
def test_nanochat_gets_back_what_it_gave(arch: str, conversational: bool, tmp_path: Path) -> None:
    model, out = saved(tmp_path / "a", arch, conversational), tmp_path / "out"
    exporters.write("nanochat", out, model, HISTORY, mx.float32)
    stage = "chatsft_checkpoints" if conversational else "base_checkpoints"
    file = out / stage / "d4" / "model_000007.pt"
    found, expected = torch_file.read(file), weights(arch)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == mx.float32
        assert mx.array_equal(tensor.read(), expected[name])
    meta = json.loads((file.parent / "meta_000007.json").read_text())
    assert meta["model_config"] == config(arch) and meta["step"] == 7
    encoding = pickle.loads((out / "tokenizer" / "tokenizer.pkl").read_bytes())
    assert type(encoding) is tiktoken.Encoding and encoding.n_vocab == 265
    lengths = torch_file.read(out / "tokenizer" / "token_bytes.pt")
    assert lengths.dtype == mx.int32
    assert lengths.read().tolist() == [1] * 256 + [0] * 9
    again = open_model(file.parent)
    assert again.conversational == conversational
    assert_reference_logits(network(again), arch)


@pytest.mark.parametrize("program", ["mlx-lm", "transformers", "nanochat"])
def test_what_is_exported_can_be_imported(program: Any, tmp_path: Path) -> None:
    model, out = saved(tmp_path / "a", "classic", True), tmp_path / "out"
    exporters.write(program, out, model, HISTORY, mx.float32)
    folder = out / "chatsft_checkpoints" / "d4" if program == "nanochat" else out
    foreign = open_model(folder)
    assert foreign.program == program and foreign.conversational
    assert foreign.config == model.model.config
    assert_reference_logits(network(foreign), "classic")


@pytest.mark.parametrize("era", [era for era in ERAS if era != "classic"])
@pytest.mark.parametrize("program", ["mlx-lm", "nanochat"])
def test_every_era_survives(era: Any, program: Any, tmp_path: Path) -> None:
    shape = GPTConfig(
        arch="modern", era=era, sequence_len=512, vocab_size=265, n_layer=4, n_head=4,
        n_kv_head=2, n_embd=64, window_pattern="SL", vocab_multiple=64,
    )  # fmt: skip
    model = SavedModel(GPT(shape), TOKENIZER, False)
    exporters.write(program, tmp_path / "out", model, HISTORY, mx.float32)
    folder = (
        tmp_path / "out" / "base_checkpoints" / "d4" if program == "nanochat" else tmp_path / "out"
    )
    foreign = open_model(folder)
    assert foreign.config == shape
    ours, back = model.model.named_parameters(), network(foreign).named_parameters()
    assert all(mx.array_equal(back[name], array) for name, array in ours.items())


def test_names_and_settings_of_transformers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    exporters.write("transformers", out, saved(tmp_path / "a", "classic"), HISTORY, mx.float32)
    fields = json.loads((out / "config.json").read_text())
    assert fields["model_type"] == "nanochat"
    assert fields["architectures"] == ["NanoChatForCausalLM"]
    assert fields["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert (fields["hidden_act"], fields["intermediate_size"]) == ("relu2", 256)
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["dtype"]) == (
        256,
        260,
        "float32",
    )
    names = {"model.embed_tokens.weight", "lm_head.weight"}
    for i in range(4):
        names |= {f"model.layers.{i}.self_attn.{n}_proj.weight" for n in "qkvo"}
        names |= {f"model.layers.{i}.mlp.fc{n}.weight" for n in (1, 2)}
    assert mx.load(str(out / "model.safetensors")).keys() == names


def test_transformers_knows_the_classic_network_only(tmp_path: Path) -> None:
    source = run(Home.from_environment(), "modern", tmp_path / "a")
    with pytest.raises(MlxchatError, match="classic network only") as caught:
        exporters.require_possible("transformers", source, tmp_path / "out")
    assert "mlx-lm" in caught.value.remedy


def test_nanochat_has_had_certain_softcaps_only(tmp_path: Path) -> None:
    source = write_nanochat(tmp_path / "a", "classic")
    CliRunner().invoke(app, ["import", str(source), "--softcap", "20"])
    folder = Home.from_environment().run("d4") / "step_000007"
    with pytest.raises(MlxchatError, match="caps its logits at 20"):
        exporters.require_possible("nanochat", folder, tmp_path / "out")
    exporters.require_possible("mlx-lm", folder, tmp_path / "out")


@pytest.mark.parametrize("program", ["mlx-lm", "transformers"])
def test_large_models_are_cut_into_files(program: Any, tmp_path: Path) -> None:
    model, out = saved(tmp_path / "a", "classic"), tmp_path / "out"
    told: list[tuple[int, int]] = []
    exporters.write(
        program,
        out,
        model,
        HISTORY,
        mx.float32,
        lambda *how_far: told.append(how_far),
        limit=300_000,
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-0000{i}-of-0000{len(files)}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert 1 < len(files) < 10 and all(file.stat().st_size < 310_000 for file in files)
    for file in files:
        held = {name for name, place in index["weight_map"].items() if place == file.name}
        assert mx.load(str(file)).keys() == held
    total = sum(array.nbytes for array in model.model.named_parameters().values())
    assert index["metadata"]["total_size"] == total == told[-1][0] == told[-1][1]
    assert_reference_logits(network(open_model(out)), "classic")


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("program", ["mlx-lm", "nanochat"])
def test_matrices_in_half_precision(dtype: mx.Dtype, program: Any, tmp_path: Path) -> None:
    model, out = saved(tmp_path / "a", "modern"), tmp_path / "out"
    exporters.write(program, out, model, HISTORY, dtype)
    folder = out / "base_checkpoints" / "d4" if program == "nanochat" else out
    for name, tensor in open_model(folder).tensors.items():
        expected = weights("modern")[name]
        if expected.ndim > 1:
            expected = expected.astype(dtype)
        assert tensor.dtype == expected.dtype
        assert mx.array_equal(tensor.read(), expected)


def test_folders_with_something_in_them_are_left_alone(tmp_path: Path) -> None:
    source = run(Home.from_environment(), "classic", tmp_path / "a")
    out = tmp_path / "out"
    out.mkdir()
    exporters.require_possible("mlx-lm", source, out)
    (out / "mine").touch()
    with pytest.raises(MlxchatError, match="not empty"):
        exporters.require_possible("mlx-lm", source, out)
    with pytest.raises(MlxchatError, match="not empty"):
        exporters.require_possible("mlx-lm", source, out / "mine")


def test_nothing_is_left_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[save] No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    model, out = saved(tmp_path / "a", "classic"), tmp_path / "b" / "out"
    with pytest.raises(MlxchatError, match="No space left"):
        exporters.write("mlx-lm", out, model, HISTORY, mx.float32)
    assert not list((tmp_path / "b").iterdir())


def test_the_command_takes_a_run_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d4-mlx-lm").mkdir()  # an empty one will do
    run(Home.from_environment(), "modern", tmp_path / "a", "chatsft_checkpoints")
    result = CliRunner().invoke(app, ["export", "--to", "mlx-lm"])
    assert result.exit_code == 0, result.output
    out = tmp_path / "d4-mlx-lm"
    assert f"--model {out} --trust-remote-code" in result.output
    compile((out / "mlxchat_model.py").read_text(), "mlxchat_model.py", "exec")
    card = (out / "README.md").read_text()
    assert "smear and backout" in card and "| step | 7 |" in card
    assert "1.2500 bits per byte" in card and "imported step 7 of a run of nanochat" in card
    assert "chat_template" in json.loads((out / "tokenizer_config.json").read_text())
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [260, 256]


def test_quantized_for_mlx_lm(tmp_path: Path) -> None:
    source, out = run(Home.from_environment(), "classic", tmp_path / "a"), tmp_path / "out"
    to = ["export", "--checkpoint", str(source), "--out", str(out), "--json"]
    result = CliRunner().invoke(app, [*to, "--to", "mlx-lm", "--quantize", "4"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["path"] == str(out) and facts["program"] == "mlx-lm"
    fields = json.loads((out / "config.json").read_text())
    assert fields["quantization"]["bits"] == 4
    tensors = mx.load(str(out / "model.safetensors"))
    assert tensors["transformer.h.0.attn.c_q.scales"].dtype == mx.bfloat16
    assert layout.read_model(out, mx.bfloat16).model.config.n_layer == 4
    with pytest.raises(MlxchatError, match="is quantized"):
        open_model(out)
    for program in ("transformers", "nanochat"):
        refused = CliRunner().invoke(app, [*to, "--to", program, "--quantize", "4"])
        assert isinstance(refused.exception, MlxchatError)


def test_the_card_of_a_model_trained_here(tmp_path: Path) -> None:
    settings = PretrainConfig.model_validate(
        {
            "depth": 1, "dataset": "builtin", "vocab_size": 300, "max_seq_len": 32,
            "device_batch_size": 4, "total_batch_size": 256, "num_iterations": 2,
            "eval_every": 0, "sample_every": 0, "model_tag": "tiny",
        }
    )  # fmt: skip
    home = Home.from_environment()
    list(pretrain(settings, home, lambda _: None))
    source = home.run("tiny") / "step_000002"
    about = history.read(source, "tiny", 2)
    assert (about.data, about.tokens, about.origin) == (("builtin",), 512, None)
    model = layout.read_model(source, mx.float32)
    exporters.write("transformers", tmp_path / "out", model, about, mx.float32)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| data | builtin |" in card and "| trained on | 512 tokens" in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "license:" not in card


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"dataset": "builtin", "data_dir": None}, ["builtin"]),
        ({"dataset": "builtin", "data_dir": "/home/me/shards"}, ["shards of its own"]),
        ({"data": ["/home/me/chats.jsonl", "builtin"]}, ["chats.jsonl", "builtin"]),
        ({"data": None, "spelling": 100}, []),
    ],
)
def test_data_are_told_without_paths(settings: dict[str, Any], data: list[str]) -> None:
    told = [text.removeprefix("conversations of ") for text in history._data(settings)]
    assert told == data


def test_licences_of_data_are_told(tmp_path: Path) -> None:
    model = saved(tmp_path, "classic")
    about = History("d12", 1, "pretraining", tuple(history._data({"dataset": "climbmix"})), 5)
    exporters.write("nanochat", tmp_path / "out", model, about, mx.float32)
    assert "non-commercial" in (tmp_path / "out" / "README.md").read_text()
