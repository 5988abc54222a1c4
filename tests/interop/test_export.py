"""Models written for other programs: names, shapes and values, and what is written beside them."""

import json
import os
import pickle
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from support.extras import extra
from support.foreign_models import (
    assert_reference_logits,
    config,
    saved,
    weights,
    write_nanochat,
)
from support.memory import memory_held
from support.models import BYTES
from support.task_scores import put_results, result
from typer.testing import CliRunner

from mlxchat.checkpoint import files, history, layout
from mlxchat.checkpoint.history import History, Training
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli.app import app
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.interop import exporters, torch_file
from mlxchat.interop.importers import open_model
from mlxchat.interop.importers.model import read_network
from mlxchat.interop.programs import PROGRAMS, Program
from mlxchat.model.config import ERAS, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.train.pretrain import Pretraining, run_pretraining
from mlxchat.train.sft import FineTuning, run_fine_tuning
from mlxchat.train.stage import history_of

HISTORY = History(tag="d4", step=7)


def run(home: Home, arch: str, base: Path, stage: str = "base_checkpoints") -> Path:
    """The reference model as a run called d4."""
    source = write_nanochat(base, arch, stage=stage)
    result = CliRunner().invoke(app, ["import", str(source)])
    assert result.exit_code == 0, result.output
    return home.run("d4") / "step_000007"


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("conversational", [False, True])
def test_an_export_to_nanochat_has_the_same_weights(
    arch: str, conversational: bool, tmp_path: Path
) -> None:
    model, out = saved(tmp_path / "a", arch, conversational), tmp_path / "out"
    exporters.write("nanochat", out, model, HISTORY, mx.float32)
    stage = "chatsft_checkpoints" if conversational else "base_checkpoints"
    file = out / stage / "d4" / "model_000007.pt"
    found, expected = torch_file.read_torch(file), weights(arch)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == mx.float32
        assert mx.array_equal(tensor.read(), expected[name])
    meta = json.loads((file.parent / "meta_000007.json").read_text())
    assert meta["model_config"] == config(arch) and meta["step"] == 7
    encoding = pickle.loads((out / "tokenizer" / "tokenizer.pkl").read_bytes())
    assert type(encoding) is tiktoken.Encoding and encoding.n_vocab == 265
    lengths = torch_file.read_torch(out / "tokenizer" / "token_bytes.pt")
    assert lengths.dtype == mx.int32
    assert lengths.read().tolist() == [1] * 256 + [0] * 9
    again = open_model(out)
    assert again.path == file
    assert again.conversational == conversational
    assert_reference_logits(read_network(again), arch)


@pytest.mark.parametrize("program", ["mlx-lm", "transformers", "nanochat"])
def test_an_exported_model_can_be_imported(program: Any, tmp_path: Path) -> None:
    model, out = saved(tmp_path / "a", "classic", True), tmp_path / "out"
    exporters.write(program, out, model, HISTORY, mx.float32)
    folder = out / "chatsft_checkpoints" / "d4" if program == "nanochat" else out
    foreign = open_model(folder)
    assert foreign.program == program and foreign.conversational
    assert foreign.config == model.model.config
    assert_reference_logits(read_network(foreign), "classic")


@pytest.mark.parametrize("era", [era for era in ERAS if era != "classic"])
@pytest.mark.parametrize("program", ["mlx-lm", "nanochat"])
def test_a_model_of_every_era_survives_export_and_import(
    era: Any, program: Any, tmp_path: Path
) -> None:
    shape = GPTConfig(
        arch="modern", era=era, sequence_len=512, vocab_size=265, n_layer=4, n_head=4,
        n_kv_head=2, n_embd=64, window_pattern="SL", vocab_multiple=64,
    )  # fmt: skip
    model = SavedModel(GPT(shape), BYTES, False)
    exporters.write(program, tmp_path / "out", model, HISTORY, mx.float32)
    folder = (
        tmp_path / "out" / "base_checkpoints" / "d4" if program == "nanochat" else tmp_path / "out"
    )
    foreign = open_model(folder)
    assert foreign.config == shape
    ours, back = model.model.named_parameters(), read_network(foreign).named_parameters()
    assert all(mx.array_equal(back[name], array) for name, array in ours.items())


def test_config_and_names_equal_those_of_transformers(tmp_path: Path) -> None:
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
    with pytest.raises(MlxchatError, match="only supports nanochat's classic network") as caught:
        exporters.require_possible("transformers", source, tmp_path / "out")
    assert "mlx-lm" in caught.value.remedy


def test_softcaps_that_nanochat_never_had_are_refused(tmp_path: Path) -> None:
    source = write_nanochat(tmp_path / "a", "classic")
    CliRunner().invoke(app, ["import", str(source), "--softcap", "20"])
    folder = Home.from_environment().run("d4") / "step_000007"
    with pytest.raises(MlxchatError, match="has a softcap of 20"):
        exporters.require_possible("nanochat", folder, tmp_path / "out")
    exporters.require_possible("mlx-lm", folder, tmp_path / "out")


@pytest.mark.parametrize("program", ["mlx-lm", "transformers"])
def test_large_models_are_split_into_files(program: Any, tmp_path: Path) -> None:
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
    assert_reference_logits(read_network(open_model(out)), "classic")


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("program", ["mlx-lm", "nanochat"])
def test_only_matrices_are_written_in_half_precision(
    dtype: mx.Dtype, program: Any, tmp_path: Path
) -> None:
    model, out = saved(tmp_path / "a", "modern"), tmp_path / "out"
    exporters.write(program, out, model, HISTORY, dtype)
    folder = out / "base_checkpoints" / "d4" if program == "nanochat" else out
    for name, tensor in open_model(folder).tensors.items():
        expected = weights("modern")[name]
        if expected.ndim > 1:
            expected = expected.astype(dtype)
        assert tensor.dtype == expected.dtype
        assert mx.array_equal(tensor.read(), expected)


def test_existing_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = run(Home.from_environment(), "classic", tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    exporters.require_possible("mlx-lm", source, tmp_path / "new" / "out")
    for out in (".", "folder", "file", "link", "dangling"):
        result = CliRunner().invoke(
            app, ["export", "--to", "mlx-lm", "--checkpoint", str(source), "--out", out]
        )
        assert isinstance(result.exception, MlxchatError), out
        assert "already exists" in result.exception.problem
    assert not any((tmp_path / "target").iterdir())


def test_matrices_are_cast_one_after_another(tmp_path: Path) -> None:
    model = GPT(GPTConfig(vocab_size=4096, n_layer=8, n_head=4, n_kv_head=4, n_embd=128))
    whole = sum(array.nbytes for array in model.named_parameters().values())
    mx.eval(model.parameters())
    before = memory_held()
    exporters.write(
        "nanochat", tmp_path / "out", SavedModel(model, BYTES, False), HISTORY, mx.bfloat16
    )
    assert mx.get_peak_memory() - before < whole / 4
    assert mx.get_active_memory() - before < -whole / 3


def test_a_failed_export_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[write] Unable to write 64 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", full)
    model, out = saved(tmp_path / "a", "classic"), tmp_path / "b" / "out"
    with pytest.raises(MlxchatError, match=r"Unable to write 64 bytes to file\.\n"):
        exporters.write("mlx-lm", out, model, HISTORY, mx.float32)
    assert not list((tmp_path / "b").iterdir())


def test_a_folder_that_mlx_cannot_write_is_refused(tmp_path: Path) -> None:
    model, out = saved(tmp_path / "a", "classic"), tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(MlxchatError, match="is not valid UTF-8"):
        exporters.write("mlx-lm", out, model, HISTORY, mx.float32)


def test_the_command_exports_a_run_and_prints_the_next_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Home.from_environment(), "modern", tmp_path / "a", "chatsft_checkpoints")
    result = CliRunner().invoke(app, ["export", "--to", "mlx-lm"])
    assert result.exit_code == 0, result.output
    out = tmp_path / "d4-mlx-lm"
    assert "The model: d4/step_000007." in result.output
    assert f"--model {out} --trust-remote-code" in result.output
    compile((out / "mlxchat_model.py").read_text(), "mlxchat_model.py", "exec")
    card = (out / "README.md").read_text()
    assert "smear and backout" in card and "| step | 7 |" in card
    assert (
        "1.2500 bits per byte" in card and "It was imported from nanochat: step 7 of a run." in card
    )
    assert "The training data of the model that was imported from nanochat is unknown." in card
    assert "treats it as the special token; mlxchat treats it as plain text" in card
    assert "chat_template" in json.loads((out / "tokenizer_config.json").read_text())
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [260, 256]


def test_the_command_quantizes_for_mlx_lm(tmp_path: Path) -> None:
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
    assert "bits per byte" not in (out / "README.md").read_text()  # it has others now
    with pytest.raises(MlxchatError, match="is quantized"):
        open_model(out)
    for program in ("transformers", "nanochat"):
        refused = CliRunner().invoke(app, [*to, "--to", program, "--quantize", "4"])
        assert isinstance(refused.exception, MlxchatError)


def test_exporting_a_quantized_model_equals_quantizing_while_exporting(tmp_path: Path) -> None:
    source = run(Home.from_environment(), "classic", tmp_path / "a")
    quantizing = ["quantize", "--checkpoint", str(source), "--eval-tokens", "0", "--json"]
    made = CliRunner().invoke(app, quantizing)
    assert f"The model: {source}." in made.output
    assert made.exit_code == 0, made.output
    copy, out = Path(json.loads(made.stdout)["path"]), tmp_path / "out"
    result = CliRunner().invoke(
        app, ["export", "--to", "mlx-lm", "--checkpoint", str(copy), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    tensors = mx.load(str(out / "model.safetensors"))
    assert tensors["transformer.h.0.attn.c_q.scales"].dtype == mx.bfloat16
    card = (out / "README.md").read_text()
    assert "It was imported from nanochat: step 7 of a run." in card
    assert "bits per byte" not in card


def pretrained(home: Home, tag: str, **settings: object) -> Path:
    """A small model, trained for two steps."""
    config = PretrainConfig.model_validate(
        {
            "depth": 1, "dataset": "builtin", "vocab_size": 300, "max_seq_len": 32,
            "device_batch_size": 4, "total_batch_size": 256, "num_iterations": 2,
            "eval_every": 0, "sample_every": 0, "model_tag": tag,
        }
        | settings
    )  # fmt: skip
    list(run_pretraining(config, home, lambda _: None))
    return home.run(tag) / "step_000002"


def test_the_card_says_how_the_model_was_trained(tmp_path: Path) -> None:
    source = pretrained(Home.from_environment(), "tiny")
    about = history_of(source, Home.from_environment())
    (trained,) = about.trainings
    assert (about.tag, about.step, about.origin, about.unknown) == ("tiny", 2, None, None)
    assert (trained.tokens, trained.began_with) == (512, None)
    model = layout.read_model(source, mx.float32)
    exporters.write("transformers", tmp_path / "out", model, about, mx.float32)
    put_results(
        Home.from_environment(), "tiny", 2, result(), result("mmlu", 4, 10, max_problems=10)
    )
    measured = history_of(source, Home.from_environment())
    exporters.write("transformers", tmp_path / "measured", model, measured, mx.float32)
    card = (tmp_path / "measured" / "README.md").read_text()
    assert "| arc-easy | 60.0% of 100 problems right (95% interval: 50.2% to 69.1%) |" in card
    assert "| mmlu | 40.0% of the first 10 problems right (95% interval: 16.8% to 68.7%) |" in card
    assert measured.unmeasured() == about.unmeasured()
    measured.write(tmp_path)
    assert "results" not in json.loads((tmp_path / "history.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "arc-easy" not in card
    assert "| pretraining | 512 tokens of the built-in corpus of mlxchat |" in card
    assert "It was trained on the built-in corpus of mlxchat." in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "license:" not in card and "unknown" not in card


@pytest.mark.slow
def test_the_card_names_every_earlier_model(tmp_path: Path) -> None:
    """Imported, trained on, fine-tuned and quantized; what it was made of is gone by then."""
    home = Home.from_environment()
    config = GPTConfig.from_depth(1, BYTES.vocab_size, 32)
    foreign = SavedModel(GPT(config), BYTES, False)
    exporters.write("transformers", tmp_path / "their model", foreign, HISTORY, mx.float32)
    result = CliRunner().invoke(
        app, ["import", str(tmp_path / "their model"), "--model-tag", "base"]
    )
    assert result.exit_code == 0, result.output
    pretrained(home, "more", init_from="base", vocab_size=BYTES.vocab_size)
    shutil.rmtree(home.run("base"))
    tuning = {
        "source": "more", "model_tag": "chatty", "data": ["builtin:0.01"], "spelling": 20,
        "num_iterations": 2, "device_batch_size": 4, "eval_every": 0, "sample_every": 0,
        "save_every": 1,
    }  # fmt: skip
    first = run_fine_tuning(
        SftConfig.model_validate(tuning), home, lambda _: None, stop=lambda: True
    )
    list(first)  # to resume from
    list(run_fine_tuning(SftConfig.model_validate(tuning), home, lambda _: None))
    result = CliRunner().invoke(
        app, ["quantize", "--model-tag", "chatty", "--eval-tokens", "0", "--json"]
    )
    assert result.exit_code == 0, result.output
    for tag in ("more", "chatty"):
        shutil.rmtree(home.run(tag))
    about = history_of(Path(json.loads(result.stdout)["path"]), home)
    assert about.origin and about.origin.program == "transformers"
    assert [training.run for training in about.trainings] == ["more", "chatty"]
    assert [training.began_with for training in about.trainings] == ["base", "more"]
    exporters.write("mlx-lm", tmp_path / "out", foreign, about, mx.float32)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It was imported from transformers: a model." in card
    assert "step 2 of the pretraining run `more`, which started from `base`" in card
    assert "step 2 of the fine-tuning run `chatty`, which started from `more`" in card
    assert (
        "It was trained on the built-in corpus of mlxchat; conversations of the built-in corpus of "
        "mlxchat; generated conversations about spelling. The training data of the model that was "
        "imported from transformers is unknown." in card
    )
    assert str(tmp_path) not in card


def test_the_card_of_a_run_names_the_foreign_model_it_started_from(tmp_path: Path) -> None:
    training = Training(
        run="d4", stage="fine-tuning", step=7, data=("chats.jsonl",), tokens=None,
        began_with="theirs",
    )  # fmt: skip
    assert History(tag="d4", step=7, trainings=(training,)).unknown == "theirs"


def test_a_damaged_history_file_is_named(tmp_path: Path) -> None:
    (tmp_path / files.HISTORY).write_text('{"tag": 3}')
    with pytest.raises(MlxchatError, match=r"history\.json is damaged"):
        history.read_file(tmp_path)


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"dataset": "builtin", "data_dir": None}, ["the built-in corpus of mlxchat"]),
        ({"dataset": "builtin", "data_dir": "/home/me/shards"}, ["shards of its own"]),
        (
            {"data": ["/home/me/chats.jsonl:0.5", "builtin:3"]},
            ["conversations of chats.jsonl", "conversations of the built-in corpus of mlxchat"],
        ),
        (
            {"data": None, "identity": "name=Ada", "spelling": 100},
            ["generated conversations about who it is", "generated conversations about spelling"],
        ),
    ],
)
def test_data_are_named_without_paths(settings: dict[str, Any], data: list[str]) -> None:
    pretraining = "dataset" in settings
    config = (PretrainConfig if pretraining else SftConfig).model_validate(settings)
    stage = (Pretraining if pretraining else FineTuning)(config, Home.from_environment())
    assert stage.data_in_words() == data


def test_the_card_names_the_licence_of_all_data(tmp_path: Path) -> None:
    climbmix = Pretraining(PretrainConfig(dataset="climbmix"), Home.from_environment())
    base = Training(
        run="d12", stage="pretraining", step=1, data=tuple(climbmix.data_in_words()),
        tokens=5, began_with=None,
    )  # fmt: skip
    tuned = base.model_copy(update={"stage": "fine-tuning", "data": ("chats",)})
    about = History(tag="chatty", step=1, trainings=(base, tuned))
    exporters.write("nanochat", tmp_path / "out", saved(tmp_path, "classic"), about, mx.float32)
    licence = (tmp_path / "out" / "README.md").read_text().partition("## Licence")[2]
    assert "non-commercial" in licence and "; chats." in licence


@pytest.mark.parametrize(
    ("era", "conversational", "command"),
    [
        ("classic", False, "chat_cli -i base -g 'my model'"),
        ("values", False, "chat_cli -i base -g 'my model'"),
        ("gates_32", False, "base_eval --eval sample --model-tag='my model'"),
        ("classic", True, "chat_cli -i sft -g 'my model'"),
    ],
)
def test_the_usage_is_a_command_of_nanochat(
    era: Any, conversational: bool, command: str, tmp_path: Path
) -> None:
    shape = GPTConfig(
        arch=ERAS[era].arch, era=era, vocab_size=265, n_layer=2, n_head=1, n_kv_head=1, n_embd=64,
        window_pattern="L", vocab_multiple=1 if era == "classic" else 64,
    )  # fmt: skip
    model = SavedModel(GPT(shape), BYTES, conversational)
    about = History(tag="my model", step=0)
    usage = exporters.write("nanochat", tmp_path / "out", model, about, mx.float32).usage
    line = usage.at("/my models/it's")[-1]
    assert line == f"NANOCHAT_BASE_DIR='/my models/it'\"'\"'s' python -m scripts.{command}"


def test_paths_are_quoted_for_the_language_of_the_command(tmp_path: Path) -> None:
    model = saved(tmp_path / "a", "classic")
    usages = {
        program: exporters.write(program, tmp_path / program, model, HISTORY, mx.float32).usage
        for program in ("mlx-lm", "transformers")
    }
    assert "--model '/my models/x' --prompt" in usages["mlx-lm"].at("/my models/x")[-1]
    program = "\n".join(usages["transformers"].at('/my "models"/é'))
    assert 'AutoTokenizer.from_pretrained("/my \\"models\\"/é")' in program
    compile(program, "program", "exec")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_row_names_a_module_with_the_functions_of_an_exporter(program: Program) -> None:
    if program == "gguf":
        extra("gguf")
    module = exporters.exporter(program)
    for name in ("require_known", "write", "usage"):
        ours, expected = getattr(module, name), getattr(exporters.Exporter, name)
        assert list(signature(ours).parameters) == list(signature(expected).parameters)[1:]
        assert ours.__annotations__ == expected.__annotations__


def test_help_names_every_program() -> None:
    shown = CliRunner().invoke(app, ["export", "--help"]).output
    assert all(program in shown for program in PROGRAMS)
