"""Models of other programs become runs that compute the same; nothing in their files is run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.foreign_models import (
    assert_reference_logits,
    config,
    weights,
    write_nanochat,
)
from support.hostile_pickles import running
from support.models import BYTES
from support.places import SHARED, needs_shared
from typer.testing import CliRunner

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.trainer import read_optimizer
from mlxchat.cli.app import app
from mlxchat.cli.exchange import import_command
from mlxchat.errors import ConfigError, MlxchatError, NotFound
from mlxchat.home import Home
from mlxchat.interop import stored_zip, torch_file
from mlxchat.interop.importers import open_model
from mlxchat.interop.importers.model import read_network
from mlxchat.model.config import ERAS, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.runtime import mx


def imported(path: Path, **options: Any) -> Path:
    """The directory of the model, imported as the command does it."""
    given: dict[str, Any] = {
        "step": None, "model_tag": None, "tokenizer": None, "softcap": None, "conversational": None,
        "with_optimizer": False, "json": True,
    }  # fmt: skip
    import_command(path, **(given | options))
    home = Home.from_environment()
    [folder] = [path for stage in home.stages for path in stage.glob("*/step_*")]
    return folder


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_an_imported_checkpoint_computes_the_same_as_in_nanochat(arch: str, tmp_path: Path) -> None:
    folder = imported(write_nanochat(tmp_path, arch))
    assert folder.parts[-3:] == ("base_checkpoints", "d4", "step_000007")
    saved = layout.read_model(folder, mx.float32)
    assert saved.model.config.era == arch and not saved.conversational
    assert_reference_logits(saved.model, arch)
    ours = saved.model.named_parameters()
    assert all(mx.array_equal(ours[name], array) for name, array in weights(arch).items())
    assert json.loads((folder / "origin.json").read_text())["bits_per_byte"] == 1.25


def test_half_precision_tables_become_float32_exactly(tmp_path: Path) -> None:
    tensors = weights("modern")
    for name in tensors:
        if "wte" in name or "value_embeds" in name:
            tensors[name] = tensors[name].astype(mx.bfloat16)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(mx.float16)
    model = read_network(open_model(write_nanochat(tmp_path, "modern", tensors=tensors)))
    for name, array in model.named_parameters().items():
        assert array.dtype == mx.float32
        assert mx.array_equal(array, tensors[name].astype(mx.float32))


def test_names_of_a_compiled_model_lose_their_prefix(tmp_path: Path) -> None:
    tensors = {f"_orig_mod.{name}": array for name, array in weights("classic").items()}
    assert_reference_logits(
        read_network(open_model(write_nanochat(tmp_path, "classic", tensors=tensors))), "classic"
    )


def test_classic_tables_may_have_rows_for_padding(tmp_path: Path) -> None:
    tensors = weights("classic")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[name] = mx.concatenate([tensors[name], mx.ones((320 - 265, 64))])
    model = read_network(open_model(write_nanochat(tmp_path, "classic", tensors=tensors)))
    assert model.config.vocab_multiple == 1
    assert_reference_logits(model, "classic")


@pytest.mark.parametrize("name", list(ERAS))
def test_every_era_is_recognised_by_its_tensors(name: Any, tmp_path: Path) -> None:
    era = ERAS[name]
    multiple = 1 if name == "classic" else 64
    shape = GPTConfig(
        arch=era.arch, era=name, sequence_len=512, vocab_size=265, n_layer=4, n_head=4,
        n_kv_head=2, n_embd=64, window_pattern="SL" if era.short_window else "L",
        vocab_multiple=multiple,
    )  # fmt: skip
    fields = {
        key: getattr(shape, key)
        for key in config("modern")
        if key != "window_pattern" or era.short_window
    }
    tensors = GPT(shape).named_parameters()
    folder = write_nanochat(tmp_path, "modern", tensors=tensors, fields=fields)
    foreign = open_model(folder)
    assert foreign.config == shape
    assert bool(foreign.notes) == (len(era.softcaps) > 1)
    assert open_model(folder, softcap=20.0).config == shape.model_copy(update={"softcap": 20.0})
    assert not open_model(folder, softcap=20.0).notes


def test_the_newest_step_is_imported_unless_another_is_named(tmp_path: Path) -> None:
    for step in (7, 12, 9):
        folder = write_nanochat(tmp_path, "classic", step)
    assert open_model(folder).step == 12
    assert open_model(folder, step=9).step == 9
    assert open_model(folder / "model_000007.pt").step == 7
    with pytest.raises(MlxchatError, match="no step 8") as caught:
        open_model(folder, step=8)
    assert "7, 9, 12" in caught.value.remedy


@pytest.mark.parametrize("stage", ["chatsft_checkpoints", "mid_checkpoints", "chatrl_checkpoints"])
def test_models_trained_on_conversations_are_marked(stage: str, tmp_path: Path) -> None:
    folder = imported(write_nanochat(tmp_path, "classic", stage=stage))
    assert folder.parts[-3] == "chatsft_checkpoints"
    assert layout.read_model(folder, mx.float32).conversational


def test_a_folder_of_another_name_is_reported(tmp_path: Path) -> None:
    """All files in one folder, which are links, as the hub's cache has them."""
    folder = write_nanochat(tmp_path, "classic")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate([*folder.iterdir(), tmp_path / "tokenizer" / "tokenizer.pkl"]):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    foreign = open_model(snapshot)
    assert foreign.name == "abc" and not foreign.conversational
    assert "`conversational`" in foreign.notes[0]
    assert_reference_logits(read_network(foreign), "classic")
    assert not open_model(snapshot, conversational=True).notes


def test_the_user_can_say_that_a_model_is_conversational(tmp_path: Path) -> None:
    assert open_model(write_nanochat(tmp_path, "classic"), conversational=True).conversational


def numpy_checkpoint(base: Path) -> Path:
    """One of the original mlxchat's."""
    folder = write_nanochat(base, "classic")
    plain = {n.removeprefix("transformer."): a for n, a in weights("classic").items()}
    plain |= {"cos": mx.ones((1, 480, 1, 8)), "sin": mx.ones((1, 480, 1, 8))}
    mx.savez(str(folder / "model_000007.npz"), **plain)
    (folder / "model_000007.pt").unlink()
    return folder


def test_checkpoints_of_the_original_mlxchat_are_read(tmp_path: Path) -> None:
    saved = layout.read_model(imported(numpy_checkpoint(tmp_path)), mx.float32)
    assert_reference_logits(saved.model, "classic")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([object()]), "|O"),
        (np.zeros((4, 64), "float64"), "<f8"),
        (np.asfortranarray(np.zeros((4, 64), "float32")), "in column order"),
        (np.zeros((4, 64), [("a", "<f4")]), "|V4, which is not supported"),
    ],
)
def test_other_arrays_are_refused(array: Any, said: str, tmp_path: Path) -> None:
    folder = numpy_checkpoint(tmp_path)
    np.savez(folder / "model_000007.npz", **{"wte.weight": array})
    with pytest.raises(MlxchatError, match=re.escape(said)):
        open_model(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x03\x00", b"x" * 99]
)
def test_damaged_arrays_are_refused(content: bytes, tmp_path: Path) -> None:
    folder = numpy_checkpoint(tmp_path)
    stored_zip.write_zip(folder / "model_000007.npz", [("wte.weight.npy", memoryview(content))])
    with pytest.raises(MlxchatError, match=r"wte\.weight\.npy"):
        open_model(folder)


def hub_directory(folder: Path, form: str, shards: bool = False) -> Path:
    """A classic model as transformers or mlx-lm has it, independently of what exports it."""
    names = {
        "transformer.wte": "model.embed_tokens", "transformer.h": "model.layers",
        "attn.c_proj": "self_attn.o_proj", "mlp.c_proj": "mlp.fc2", "mlp.c_fc": "mlp.fc1",
        "attn.c_q": "self_attn.q_proj", "attn.c_k": "self_attn.k_proj",
        "attn.c_v": "self_attn.v_proj",
    }  # fmt: skip
    tensors = weights("classic")
    fields: dict[str, Any] = {
        "model_type": "nanochat", "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 265,
        "max_position_embeddings": 48, "intermediate_size": 256, "rope_theta": 10000.0,
    }  # fmt: skip
    if form == "transformers":
        for ours, theirs in names.items():
            tensors = {name.replace(ours, theirs): array for name, array in tensors.items()}
        del fields["rope_theta"]
        fields |= {
            "architectures": ["NanoChatForCausalLM"], "hidden_act": "relu2",
            "attention_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "final_logit_softcapping": 15.0,
        }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    BYTES.save(folder)
    if not shards:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        return folder
    places = {}
    for number, part in enumerate([list(tensors)[:9], list(tensors)[9:]], 1):
        file = f"model-0000{number}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in part})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("form", ["transformers", "mlx-lm"])
@pytest.mark.parametrize("shards", [False, True])
def test_directories_of_the_hub_are_read(form: str, shards: bool, tmp_path: Path) -> None:
    folder = imported(hub_directory(tmp_path / "my-model", form, shards))
    assert folder.parts[-2:] == ("my-model", "step_000000")
    saved = layout.read_model(folder, mx.float32)
    assert_reference_logits(saved.model, "classic")
    assert json.loads((folder / "origin.json").read_text())["program"] == form
    assert not saved.conversational


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_marks_a_model_trained_on_conversations(where: str, tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "transformers")
    (folder / where).write_text(json.dumps({"chat_template": "..."}))
    assert open_model(folder).conversational


@pytest.mark.parametrize("template", [None, "", []])
def test_an_empty_chat_template_is_none(template: Any, tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "mlx-lm")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    (folder / "chat_template.jinja").write_text(" \n")
    assert not open_model(folder).conversational
    assert not layout.read_model(folder, mx.float32).conversational
    (folder / "chat_template.jinja").write_text("...")
    assert open_model(folder).conversational
    assert layout.read_model(folder, mx.float32).conversational


MISSING = object()


@pytest.mark.parametrize(
    "change",
    [
        {"quantization": None, "quantization_config": None},
        {"rope_parameters": None, "rope_scaling": None, "rope_theta": None},
        {"rope_parameters": MISSING, "rope_scaling": {}},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 10000.0, "factor": 1.0}},
        {"rope_parameters": {"type": "default"}, "rope_theta": 10000},
        {"window_pattern": None, "vocab_multiple": None, "head_dim": None},
        {"final_logit_softcapping": MISSING, "rms_norm_eps": MISSING, "hidden_act": MISSING},
        {"attention_bias": MISSING, "tie_word_embeddings": MISSING, "architectures": MISSING},
        {"intermediate_size": MISSING, "partial_rotary_factor": None, "use_cache": None},
    ],
)
@pytest.mark.parametrize("form", ["transformers", "mlx-lm"])
def test_what_is_null_or_missing_has_its_default(
    change: dict[str, Any], form: str, tmp_path: Path
) -> None:
    folder = hub_directory(tmp_path / "m", form)
    fields = json.loads((folder / "config.json").read_text()) | change
    fields = {name: value for name, value in fields.items() if value is not MISSING}
    (folder / "config.json").write_text(json.dumps(fields))
    assert_reference_logits(read_network(open_model(folder)), "classic")


@pytest.mark.parametrize("given", [{"num_key_value_heads": None}, {}])
def test_without_a_number_of_kv_heads_there_are_as_many_as_heads(
    given: dict[str, None], tmp_path: Path
) -> None:
    shape = GPTConfig(vocab_size=265, n_layer=1, n_head=4, n_kv_head=4, n_embd=64)
    layout.write_model(tmp_path, GPT(shape), BYTES, False)
    fields = json.loads((tmp_path / "config.json").read_text())
    for name in ("num_key_value_heads", "max_position_embeddings"):  # 2048 without it
        del fields[name]
    (tmp_path / "config.json").write_text(json.dumps(fields | given))
    assert open_model(tmp_path).config == shape == layout.read_config(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "_orig_mod."),
        ("", "module."),
        ("", "module._orig_mod."),
        ("model.layers.0.", "model.layers.0._orig_mod."),
        ("model.layers.", "model.layers._checkpoint_wrapped_module."),
        ("model.", ""),
    ],
)
def test_names_of_modules_around_others_are_left_out(
    before: str, after: str, tmp_path: Path
) -> None:
    path = hub_directory(tmp_path / "m", "transformers") / "model.safetensors"
    tensors = {name.replace(before, after, 1): array for name, array in mx.load(str(path)).items()}
    tensors[f"{after}model.rotary_emb.inv_freq"] = mx.zeros(8)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.zeros(8)
    mx.save_safetensors(str(path), tensors)
    foreign = open_model(path.parent)
    assert foreign.program == "transformers"
    assert_reference_logits(read_network(foreign), "classic")


def test_a_tensor_with_and_without_a_wrapper_is_there_twice(tmp_path: Path) -> None:
    path = hub_directory(tmp_path / "m", "mlx-lm") / "model.safetensors"
    mx.save_safetensors(str(path), weights("classic") | {"module.lm_head.weight": mx.zeros(8)})
    with pytest.raises(MlxchatError, match=r"'lm_head\.weight' appears twice"):
        open_model(path.parent)


def test_an_index_may_name_its_own_folder(tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "mlx-lm", shards=True)
    path = folder / "model.safetensors.index.json"
    listed = json.loads(path.read_text())["weight_map"]
    names = {name: f"./{file}" if "h.0" in name else file for name, file in listed.items()}
    path.write_text(json.dumps({"weight_map": names}))
    assert_reference_logits(read_network(open_model(folder)), "classic")
    assert_reference_logits(layout.read_model(folder, mx.float32).model, "classic")


def test_rows_for_padding_may_be_counted_as_vocabulary(tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "mlx-lm")
    tensors = weights("classic")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[name] = mx.concatenate([tensors[name], mx.ones((320 - 265, 64))])
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    fields = json.loads((folder / "config.json").read_text()) | {"vocab_size": 320}
    (folder / "config.json").write_text(json.dumps(fields))
    assert_reference_logits(read_network(open_model(folder)), "classic")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta is 500000.0"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]"),
        ({"quantization": {"bits": 4}}, "is quantized"),
        ({"num_hidden_layers": 10**9}, "n_layer: Input should be less"),
        ({"num_hidden_layers": 1000}, "1,000 layers"),
        ({"max_position_embeddings": 2**40}, "sequence_len: Input should be less"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.type is 'linear'"),
        (
            {"rope_parameters": {"type": "linear", "factor": 4.0}},
            "rope_parameters.type is 'linear'",
        ),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta is 500000.0"),
        ({"rope_scaling": "default"}, "rope_scaling is 'default'"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": 7}, "rope_parameters is 7"),
        ({"rope_theta": 5e5}, "rope_theta is 500000.0"),
        ({"intermediate_size": 128}, "intermediate_size is 128"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps is 0.01"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"num_hidden_layers": 3}, "h.3.attn.c_k.weight is unexpected"),
        ({"num_attention_heads": 7}, "not a multiple of n_head 7"),
        ({"hidden_size": 128, "intermediate_size": 512}, "a width of 128"),
        ({"num_key_value_heads": 4}, "c_k.weight has shape"),
    ],
)
def test_other_configurations_are_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = hub_directory(tmp_path / "m", "transformers")
    fields = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(MlxchatError, match=re.escape(said)) as caught:
        open_model(folder)
    assert caught.value.remedy


@pytest.mark.parametrize("era", ERAS)
def test_a_directory_keeps_the_era_of_its_model(era: Any, tmp_path: Path) -> None:
    traits = ERAS[era]
    shape = GPTConfig(
        arch=traits.arch, era=era, sequence_len=64, vocab_size=265, n_layer=3, n_head=4,
        n_kv_head=2, n_embd=64, window_pattern="L", vocab_multiple=1 if era == "classic" else 64,
    )  # fmt: skip
    layout.write_model(tmp_path, GPT(shape), BYTES, False)
    assert open_model(tmp_path).config == shape
    fields = json.loads((tmp_path / "config.json").read_text())
    for change in ({"rope_theta": traits.rope_base / 2}, {"rope_scaling": {"type": "linear"}}):
        (tmp_path / "config.json").write_text(json.dumps(fields | change))
        with pytest.raises(MlxchatError, match=next(iter(change))):
            open_model(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "./../m/model.safetensors",
        ".//model.safetensors",
        "/etc/passwd",
        "/model.safetensors",
        7,
        None,
        "a.pt",
    ],
)
def test_an_index_may_only_name_files_of_its_folder(file: Any, tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "mlx-lm", shards=True)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    for read in (open_model, lambda folder: layout.read_model(folder, mx.float32)):
        with pytest.raises(MlxchatError, match="weight_map"):
            read(folder)


def test_chat_reads_a_model_in_several_files(tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "mlx-lm", shards=True)
    assert_reference_logits(layout.read_model(folder, mx.float32).model, "classic")
    command = ["chat", "--checkpoint", str(folder), "-p", "a", "--max-tokens", "3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    second = folder / "model-00002-of-00002.safetensors"
    shutil.copy(second, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(MlxchatError, match="is in another file too"):
        layout.read_model(folder, mx.float32)
    second.unlink()
    with pytest.raises(MlxchatError, match=r"model-00002-of-00002\.safetensors is missing"):
        layout.read_model(folder, mx.float32)


def test_nobody_is_told_to_delete_a_model_of_another_program(tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "transformers")
    with pytest.raises(MlxchatError, match="and 47 more") as caught:
        layout.read_model(folder, mx.float32)
    assert f"mlxchat import {folder}" in caught.value.remedy
    (folder / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(MlxchatError, match="is damaged") as caught:
        layout.read_model(folder, mx.float32)
    assert "Copy it again" in caught.value.remedy
    folder = folder.rename(tmp_path / "step_000007")
    with pytest.raises(MlxchatError, match="is damaged") as caught:
        layout.read_model(folder, mx.float32)
    assert "delete that directory" in caught.value.remedy


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "m", "mlx-lm", shards=True)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MlxchatError, match=r"00002.*missing"):
        open_model(folder)


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "dtype"])
def test_missing_unexpected_and_misshapen_tensors_are_refused(
    arch: str, fault: str, tmp_path: Path
) -> None:
    name, tensors = "transformer.h.2.mlp.c_fc.weight", weights(arch)
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        name = "transformer.h.2.attn.bias"
        tensors[name] = mx.zeros(3)
    elif fault == "shape":
        tensors[name] = tensors[name].T
    else:
        tensors[name] = tensors[name].astype(mx.int32)
    with pytest.raises(MlxchatError, match=re.escape(name)) as caught:
        open_model(write_nanochat(tmp_path, arch, tensors=tensors))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["n_head"], "lacks sequence_len"),
        ({"n_head": 4}, "lacks sequence_len"),
        (config("classic") | {"dropout": 0.1}, "dropout"),
        (config("classic") | {"window_pattern": "SSSL"}, "no short windows"),
        (config("classic") | {"n_layer": 10**9}, "n_layer: Input should be less"),
        (config("classic") | {"n_layer": 1000}, "1,000 layers"),
        (config("classic") | {"n_embd": 2**16}, "width"),
        (config("classic") | {"sequence_len": 2**40}, "sequence_len: Input should be less"),
        (config("classic") | {"\x1b[2J\n": 1}, r"'\x1b[2J\n'"),
        (config("classic") | {"n_head": "four"}, "n_head"),
        (config("classic") | {"vocab_size": 97}, "has shape"),
        (config("classic") | {"vocab_size": 300}, "a vocabulary of 300"),
        (config("classic") | {"vocab_size": 10**7}, "a vocabulary of 10000000"),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(
    fields: Any, said: str, tmp_path: Path
) -> None:
    if isinstance(fields, list):
        fields = dict.fromkeys(fields)
    with pytest.raises(MlxchatError, match=re.escape(said)):
        open_model(write_nanochat(tmp_path, "classic", fields=fields))


def test_settings_are_blamed_on_their_own_file(tmp_path: Path) -> None:
    for fields in ({"n_head": 3}, {"vocab_size": 300}, {"sequence_len": 2**40}):
        folder = write_nanochat(tmp_path, "classic", fields=config("classic") | fields)
        with pytest.raises(MlxchatError, match=r"meta_000007\.json is damaged"):
            open_model(folder)


@pytest.mark.parametrize("name", ["\x1b[31mred", "transformer.h\n", "\u202e", "a" * 10**4])
def test_names_of_tensors_are_shown_safely(name: str, tmp_path: Path) -> None:
    tensors = weights("classic") | {name: mx.zeros(3)}
    with pytest.raises(MlxchatError, match="a tensor is called") as caught:
        open_model(write_nanochat(tmp_path, "classic", tensors=tensors))
    assert caught.value.problem.isprintable() and len(caught.value.problem) < 600


def test_a_scalar_is_not_a_parameter(tmp_path: Path) -> None:
    tensors = weights("modern") | {"transformer.h.1.attn.ve_gate.weight": mx.array(1.0)}
    with pytest.raises(MlxchatError, match="ve_gate of 0 channels unexpected"):
        open_model(write_nanochat(tmp_path, "modern", tensors=tensors))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_config": 7}', "[" * 10**5])
def test_damaged_settings_are_refused(content: str, tmp_path: Path) -> None:
    folder = write_nanochat(tmp_path, "classic")
    (folder / "meta_000007.json").write_text(content)
    with pytest.raises(MlxchatError, match=r"meta_000007\.json is damaged"):
        open_model(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "pipe"):
        with pytest.raises(NotFound, match=f"There is no directory or file .*{name}"):
            open_model(tmp_path / name)
    folder = write_nanochat(tmp_path, "classic")
    with pytest.raises(MlxchatError, match="no model") as caught:
        open_model(tmp_path / "tokenizer")
    assert "model_NNNNNN.pt" in caught.value.remedy
    (folder / "meta_000007.json").rename(tmp_path / "meta.json")
    with pytest.raises(MlxchatError, match=r"meta_000007\.json is missing"):
        open_model(folder)
    (tmp_path / "meta.json").rename(folder / "meta_000007.json")
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(MlxchatError, match="no tokenizer") as caught:
        open_model(folder)
    assert "`tokenizer=FILE`" in caught.value.remedy


def test_the_only_model_of_a_base_directory_is_found(tmp_path: Path) -> None:
    first = write_nanochat(tmp_path, "classic", stage="chatsft_checkpoints")
    (tmp_path / "base_checkpoints" / "empty").mkdir(parents=True)
    (tmp_path / "chatsft_checkpoints" / "notes.txt").touch()
    foreign = open_model(tmp_path)
    assert foreign.path.parent == first and foreign.name == "d4" and foreign.conversational
    assert open_model(first.parent).path == foreign.path
    write_nanochat(tmp_path, "classic")
    with pytest.raises(MlxchatError, match="several models") as caught:
        open_model(tmp_path)
    assert "base_checkpoints/d4, chatsft_checkpoints/d4" in caught.value.problem


def test_an_option_that_cannot_be_is_blamed_on_itself(tmp_path: Path) -> None:
    folders = write_nanochat(tmp_path, "classic"), hub_directory(tmp_path / "m", "mlx-lm")
    for folder in folders:
        for softcap in (0.0, -1.0, 1e9, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match=r"`softcap=.*` cannot bound"):
                open_model(folder, softcap=softcap)


def test_the_tokenizer_may_be_elsewhere(tmp_path: Path) -> None:
    folder = write_nanochat(tmp_path / "a", "classic")
    (tmp_path / "a" / "tokenizer").rename(tmp_path / "elsewhere")
    for place in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "tokenizer.pkl"):
        assert open_model(folder, tokenizer=place).tokenizer.vocab_size == 265
    (tmp_path / "elsewhere" / "tokenizer.pkl").rename(folder / "tokenizer.pkl")
    assert open_model(folder).tokenizer.vocab_size == 265
    BYTES.save(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "mine.json")
    assert open_model(folder, tokenizer=tmp_path / "mine.json").tokenizer.vocab_size == 265
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(MlxchatError, match=r"mine\.json is damaged \(added_tokens"):
        open_model(folder, tokenizer=tmp_path / "mine.json")


@pytest.mark.slow
@needs_shared
def test_a_tokenizer_of_nanochat_keeps_its_ids(tmp_path: Path) -> None:
    tokenizers = SHARED / "data" / "tokenizers"
    shape = GPTConfig(n_layer=1, n_head=2, n_kv_head=2, n_embd=16)
    folder = write_nanochat(
        tmp_path,
        "classic",
        tensors=GPT(shape).named_parameters(),
        fields={name: getattr(shape, name) for name in config("classic")},
    )
    source = tokenizers / "nanochat_65536_a.pkl"
    tokenizer = layout.read_model(imported(folder, tokenizer=source), mx.float32).tokenizer
    cases = json.loads((tokenizers / "reference_ids.json").read_text("utf-8"))["cases"]
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"]["nanochat_65536_a"]


@needs_shared
def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    source = SHARED / "data" / "tokenizers" / "nanochat_65536_a.pkl"
    with pytest.raises(MlxchatError, match=r"65,536 tokens, but the model in .* 265"):
        open_model(write_nanochat(tmp_path, "classic"), tokenizer=source)


def test_the_name_of_another_run_is_refused(tmp_path: Path) -> None:
    source = write_nanochat(tmp_path, "classic")
    imported(source)
    with pytest.raises(MlxchatError, match="already a run called d4") as caught:
        imported(source)
    assert "`model_tag`" in caught.value.remedy
    with pytest.raises(MlxchatError, match="cannot be the name"):
        import_command(source, None, "a/b", None, None, None, False, json=True)


@pytest.mark.parametrize("name", sorted(running(Path())))
def test_hostile_files_are_refused_and_not_run(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = running(marker)[name]
    folder = write_nanochat(tmp_path, "classic")
    path, tokenizer = folder / "model_000007.pt", tmp_path / "tokenizer" / "tokenizer.pkl"
    kept, entries = path.read_bytes(), stored_zip.zip_entries(path)
    contents = {name: memoryview(entry.read()) for name, entry in entries.items()}
    contents["archive/data.pkl"] = memoryview(program)
    stored_zip.write_zip(path, contents.items())
    with pytest.raises(MlxchatError, match="refused"):
        imported(folder)
    path.write_bytes(kept)
    tokenizer.write_bytes(program)
    with pytest.raises(MlxchatError, match=r"tokenizer\.pkl"):
        imported(folder)
    assert not marker.exists()
    assert not Home.from_environment().root.exists()


def test_other_values_than_tensors_are_refused(tmp_path: Path) -> None:
    folder = write_nanochat(tmp_path, "classic")
    for value in ([1], {"a": 1}, {1: mx.zeros(3)}, mx.zeros(3)):
        torch_file.write_torch(folder / "model_000007.pt", value)
        with pytest.raises(MlxchatError, match=r"not a tensor|not a table"):
            open_model(folder)


def test_an_imported_run_cannot_resume_but_can_initialise(tmp_path: Path) -> None:
    imported(write_nanochat(tmp_path, "classic"))
    result = CliRunner().invoke(app, ["train", "--dataset", "builtin", "--model-tag", "d4"])
    assert isinstance(result.exception, MlxchatError)
    assert "was imported" in result.exception.problem
    assert "--init-from d4" in result.exception.remedy


def test_the_command_reports_the_imported_run(tmp_path: Path) -> None:
    source = write_nanochat(tmp_path, "modern", stage="chatsft_checkpoints")
    result = CliRunner().invoke(app, ["import", str(source), "--model-tag", "mine"])
    assert result.exit_code == 0, result.output
    assert "era 'modern'" in result.output and "trained on conversations" in result.output
    assert "mlxchat chat --model-tag mine" in result.output
    chat = CliRunner().invoke(app, ["chat", "--model-tag", "mine", "-p", "a", "--max-tokens", "3"])
    assert chat.exit_code == 0, chat.output


def classic_optimizers(tensors: dict[str, mx.array]) -> list[Any]:
    """The state of AdamW and Muon as torch has it, one that tells where each number belongs."""
    moments = {name: mx.random.normal(array.shape) for name, array in tensors.items()}
    adam = {
        key: {"step": mx.array(3.0), "exp_avg": moments[name], "exp_avg_sq": moments[name] ** 2}
        for key, name in enumerate(["lm_head.weight", "transformer.wte.weight"])
    }
    order = ["attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    names = [f"transformer.h.{i}.{matrix}.weight" for i in range(4) for matrix in order]
    muon: dict[int, Any] = {}
    groups = []
    for size in {tensors[name].size for name in names}:
        held = [name for name in names if tensors[name].size == size]
        keys = range(len(muon), len(muon) + len(held))
        groups.append({"lr": 0.02, "params": list(keys)})
        for key, name in zip(keys, held, strict=True):
            muon[key] = {"momentum_buffer": moments[name]}
    return [
        {"state": adam, "param_groups": [{"params": [0]}, {"params": [1]}]},
        {"state": muon, "param_groups": groups},
        moments,
    ]


def test_the_optimizer_of_a_classic_run_on_one_gpu_is_imported(tmp_path: Path) -> None:
    folder, tensors = write_nanochat(tmp_path, "classic"), weights("classic")
    *states, moments = classic_optimizers(tensors)
    torch_file.write_torch(folder / "optim_000007.pt", states)
    saved = imported(folder, with_optimizer=True)
    model = layout.read_model(saved, mx.float32).model
    optimizer = MuonAdamW(model)
    optimizer.state = read_optimizer(saved, optimizer.state)
    state = optimizer.state
    assert state["step"].item() == 3
    for name, moment in moments.items():
        if f"muon.{name}" in state:
            assert mx.array_equal(state[f"muon.{name}"], moment)
        else:
            assert mx.array_equal(state[f"adamw.{name}.m"], moment)
            assert mx.array_equal(state[f"adamw.{name}.v"], moment**2)


def modern_optimizer(tensors: dict[str, mx.array], gpus: int = 1) -> dict[str, Any]:
    """The state of MuonAdamW on the first of some GPUs."""
    names = [
        "lm_head.weight", "transformer.wte.weight", "value_embeds.1.weight",
        "value_embeds.3.weight", "resid_lambdas", "x0_lambdas", "smear_gate.weight",
        "smear_lambda", "backout_lambda",
    ]  # fmt: skip
    state: dict[int, Any] = {}
    for key, name in enumerate(names):
        moment = mx.full(tensors[name].shape, key + 0.5)
        moment = moment if moment.size < 1024 else moment[: moment.shape[0] // gpus]
        state[key] = {"step": 9, "exp_avg": moment, "exp_avg_sq": moment}
    groups = [{"kind": "adamw", "params": [key]} for key in range(len(names))]
    order = ["attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "attn.ve_gate"]
    order += ["mlp.c_fc", "mlp.c_proj"]
    matrices = [f"transformer.h.{i}.{matrix}.weight" for i in range(4) for matrix in order]
    matrices = [name for name in matrices if name in tensors]
    for shape in sorted({tensors[name].shape for name in matrices}):
        held = [name for name in matrices if tensors[name].shape == shape]
        count, first = -(-len(held) // gpus), len(state) * 2
        stack = mx.stack([mx.full(shape, float(sum(name.encode()))) for name in held[:count]])
        second = stack[..., :1] if shape[0] >= shape[1] else stack[:, :1]
        state[first] = {"momentum_buffer": stack, "second_momentum_buffer": second}
        groups.append({"kind": "muon", "params": list(range(first, first + len(held)))})
    return {"state": state, "param_groups": groups}


def test_the_optimizer_of_a_modern_run_on_one_gpu_is_imported(tmp_path: Path) -> None:
    folder, tensors = write_nanochat(tmp_path, "modern"), weights("modern")
    torch_file.write_torch(folder / "optim_000007_rank0.pt", modern_optimizer(tensors))
    saved = imported(folder, with_optimizer=True)
    optimizer = MuonAdamW(layout.read_model(saved, mx.float32).model)
    optimizer.state = read_optimizer(saved, optimizer.state)
    for name, array in optimizer.state.items():
        kind, _, parameter = name.partition(".")
        if kind in ("muon", "normuon"):
            assert (array == sum(parameter.encode())).all(), name
    assert optimizer.state["adamw.value_embeds.3.weight.v"][0, 0].item() == 3.5
    assert optimizer.state["adamw.backout_lambda.m"].item() == 8.5
    assert optimizer.state["step"].item() == 9


def test_a_file_of_an_optimizer_is_read_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read one matrix is to check the CRC of all that are stacked with it."""
    folder, tensors = write_nanochat(tmp_path, "modern"), weights("modern")
    path = folder / "optim_000007_rank0.pt"
    torch_file.write_torch(path, modern_optimizer(tensors))
    reads: list[str] = []
    read = stored_zip.Entry.read

    def counted(entry: stored_zip.Entry, *where: Any) -> bytearray:
        if "/data/" in entry.name and entry.path == path:
            reads.append(entry.name)
        return read(entry, *where)

    monkeypatch.setattr(stored_zip.Entry, "read", counted)
    imported(folder, with_optimizer=True)
    assert reads and len(set(reads)) == len(reads)


def test_the_optimizer_is_looked_for_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_nanochat(tmp_path, "modern")
    monkeypatch.setattr(
        "mlxchat.interop.importers.read_network", lambda *_: pytest.fail("it is read")
    )
    with pytest.raises(MlxchatError, match="no optimizer state"):
        imported(folder, with_optimizer=True)


def test_one_rank_of_a_sharded_optimizer_is_refused(tmp_path: Path) -> None:
    folder, tensors = write_nanochat(tmp_path, "modern"), weights("modern")
    with pytest.raises(MlxchatError, match="no optimizer state"):
        imported(folder, with_optimizer=True)
    path = folder / "optim_000007_rank0.pt"
    torch_file.write_torch(path, modern_optimizer(tensors, gpus=2))
    with pytest.raises(MlxchatError, match="complete optimizer") as caught:
        imported(folder, with_optimizer=True)
    assert "single GPU" in caught.value.remedy
    shutil.copy(path, folder / "optim_000007_rank1.pt")
    with pytest.raises(MlxchatError, match="2 such files"):
        imported(folder, with_optimizer=True)


def test_one_rank_of_a_sharded_classic_optimizer_is_refused(tmp_path: Path) -> None:
    folder, tensors = write_nanochat(tmp_path, "classic"), weights("classic")
    adam, muon, _ = classic_optimizers(tensors)
    path = folder / "optim_000007.pt"
    for state in ([adam], {"state": 1}, [adam, {"state": {}}], 7):
        torch_file.write_torch(path, state)
        with pytest.raises(MlxchatError, match=r"damaged|complete"):
            imported(folder, with_optimizer=True)
    for group in (3, {}, {"params": 3}, {"params": []}, {"params": [[]]}):
        torch_file.write_torch(path, [adam, muon | {"param_groups": [group]}])
        with pytest.raises(MlxchatError, match="a group without parameters"):
            imported(folder, with_optimizer=True)
    for step in ("3", [3], mx.zeros(3), None):
        state = {key: entry | {"step": step} for key, entry in adam["state"].items()}
        torch_file.write_torch(path, [{"state": state}, muon])
        with pytest.raises(MlxchatError, match="no step count"):
            imported(folder, with_optimizer=True)
    del muon["state"][3]
    torch_file.write_torch(path, [adam, muon])
    with pytest.raises(MlxchatError, match="complete optimizer"):
        imported(folder, with_optimizer=True)
    torch_file.write_torch(path, [{"state": {}}, muon])
    with pytest.raises(MlxchatError, match="complete optimizer"):
        imported(folder, with_optimizer=True)


def test_help_imports_no_arrays() -> None:
    script = (
        "import sys, typer.testing\n"
        "from mlxchat.cli.app import app\n"
        "for command in ('import', 'export'):\n"
        "    result = typer.testing.CliRunner().invoke(app, [command, '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.output, result.output\n"
        "assert not {'mlx.core', 'numpy', 'tiktoken'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
