"""The files of an adapter, and the model that it belongs to."""

import json
import shutil
from pathlib import Path

import pytest
from support.adapted import adapter_run, base_run, logits
from support.models import BYTES, network

from mlxchat.checkpoint import adapters, layout, store
from mlxchat.checkpoint.bases import BASE_FILE, BaseRecord, checksums_of_weights
from mlxchat.errors import CheckpointError
from mlxchat.home import Home
from mlxchat.model.adapter import LoraConfig
from mlxchat.model.config import Architecture
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import adapter_arrays, add_adapter
from mlxchat.model.quantization import Quantization
from mlxchat.quantize import quantize
from mlxchat.runtime import DTYPES, mx

IDS = mx.array([[3, 1, 4, 1, 5]])
LORA = LoraConfig(rank=2, layers=1, modules=("attn.c_v", "mlp.c_fc"))


def tuned(model: GPT, lora: LoraConfig = LORA) -> GPT:
    add_adapter(model, lora)
    arrays = {n: a + 0.05 for n, a in adapter_arrays(model).items()}
    model.load_weights(list(arrays.items()), strict=False)
    return model


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a base of three steps, and an adapter on its second step."""
    home = Home(tmp_path / "home")
    for step in (1, 2, 3):
        saved = network(seed=step)
        store.save(
            home.runs / "d2",
            step,
            lambda folder, saved=saved: layout.write_model(folder, saved.model, BYTES, False),
        )
    base = home.runs / "d2" / "step_000002"
    record = BaseRecord(run="d2", step=2, folder=str(base), weights=checksums_of_weights(base))
    model = tuned(network(seed=2).model)
    store.save(
        home.finetuned / "d2-lora",
        5,
        lambda folder: layout.write_adapted(folder, model, BYTES, True, record),
    )
    return home


def step(home: Home) -> Path:
    return home.finetuned / "d2-lora" / "step_000005"


def test_a_step_is_read_as_any_model(home: Home) -> None:
    saved = layout.read_model(step(home), mx.float32)
    assert saved.conversational
    assert saved.model.adapter == LORA
    assert mx.array_equal(saved.model(IDS), tuned(network(seed=2).model)(IDS))
    assert layout.read_config(step(home)) == saved.model.config
    assert not (step(home) / layout.MODEL).exists()


@pytest.mark.parametrize("dora", [False, True])
def test_the_configuration_is_what_mlx_lm_reads(home: Home, dora: bool) -> None:
    config = network().model.config
    fields = adapters.adapter_fields(config, LORA.model_copy(update={"dora": dora}))
    assert fields == {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": 1,
        "lora_parameters": {
            "rank": 2,
            "scale": 20.0,
            "dropout": 0.0,
            "keys": ["attn.c_v", "mlp.c_fc"],
        },
    }
    assert adapters.read_lora_config(step(home), config) == LORA


@pytest.mark.parametrize(
    "fields",
    [
        {"fine_tune_type": "full"},
        {"fine_tune_type": "lora", "lora_parameters": {"rank": 0}},
        {"lora_parameters": {"rank": 2, "keys": ["auto"]}},
        {"lora_parameters": []},
    ],
)
def test_a_configuration_that_fits_nothing_is_refused(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    (tmp_path / adapters.ADAPTER_CONFIG).write_text(json.dumps(fields), "utf-8")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        adapters.read_lora_config(tmp_path, network().model.config)


def test_the_base_is_found_by_its_weights(home: Home) -> None:
    """Its run was renamed, and the home moved."""
    expected = layout.read_model(step(home), mx.float32).model(IDS)
    (home.runs / "d2").rename(home.runs / "d2.old1")
    moved = Home(home.root.rename(home.root.with_name("moved")))
    assert mx.array_equal(layout.read_model(step(moved), mx.float32).model(IDS), expected)
    elsewhere = shutil.move(moved.runs / "d2.old1" / "step_000002", moved.root.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="neither in"):
        layout.read_model(step(moved), mx.float32)
    found = layout.read_model(step(moved), mx.float32, base=Path(elsewhere))
    assert mx.array_equal(found.model(IDS), expected)


def test_the_base_of_an_adapter_elsewhere_is_looked_for_in_the_home(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = layout.read_model(step(home), mx.float32).model(IDS)
    (home.runs / "d2").rename(home.runs / "renamed")
    stick = shutil.copytree(step(home), tmp_path / "stick" / "adapter")
    monkeypatch.setenv("MLXCHAT_HOME", str(home.root))
    assert mx.array_equal(layout.read_model(stick, mx.float32).model(IDS), expected)
    monkeypatch.setenv("MLXCHAT_HOME", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match=f"neither in {tmp_path / 'empty'}") as caught:
        layout.read_model(stick, mx.float32)
    assert f"mlxchat import {stick} --onto DIR" in caught.value.remedy


def test_another_base_is_refused_unless_it_is_named(home: Home) -> None:
    base = home.runs / "d2" / "step_000002"
    shutil.rmtree(base)
    shutil.copytree(home.runs / "d2" / "step_000003", base)
    with pytest.raises(CheckpointError, match=r"weights in .*step_000002 are different"):
        layout.read_model(step(home), mx.float32)
    forced = layout.read_model(step(home), mx.float32, base=base).model
    assert mx.array_equal(forced(IDS), tuned(network(seed=3).model)(IDS))


def test_a_damaged_adapter_is_named(home: Home) -> None:
    for name in (adapters.ADAPTER_FILE, BASE_FILE):
        file = step(home) / name
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        with pytest.raises(CheckpointError, match=name):
            layout.read_model(step(home), mx.float32)
        file.write_bytes(before)


def test_pruning_keeps_what_an_adapter_needs(home: Home) -> None:
    assert store.old_steps(home.runs / "d2", keep=1) == [1]
    (home.runs / "d2").rename(home.runs / "other")
    assert store.old_steps(home.runs / "other", keep=1) == [1]
    shutil.rmtree(home.finetuned)
    assert store.old_steps(home.runs / "other", keep=1) == [1, 2]


@pytest.mark.parametrize(
    ("arch", "bits", "dtype"),
    [
        ("classic", None, "float32"),
        ("classic", 8, "float32"),
        ("classic", None, "bfloat16"),
        ("modern", None, "float32"),
    ],
)
def test_adapters_of_one_model_share_its_weights(
    arch: Architecture, bits: int | None, dtype: str, tmp_path: Path
) -> None:
    place, saved = Home(tmp_path), network(64, arch)
    if bits:
        quantize(saved.model, Quantization(bits=bits, group_size=32).formats(saved.model.config))
    base, kinds = base_run(place, saved), {"cow": LORA, "hen": LoraConfig(rank=3, dora=True)}
    folders = {name: adapter_run(place, base, name, lora) for name, lora in kinds.items()}
    alone = layout.read_model(base, DTYPES[dtype])
    adapted = layout.load_adapters_for_inference(alone, folders)
    held = {id(array) for array in alone.model.named_parameters().values()}
    for name, folder in folders.items():
        own = adapted[name].model.named_parameters()
        assert {n for n, array in own.items() if id(array) not in held} == {
            n for n in own if n.endswith((".lora_a", ".lora_b", ".m"))
        }
        expected = logits(layout.load_for_inference(folder, dtype).model)
        assert mx.array_equal(logits(adapted[name].model), expected)
    assert mx.array_equal(logits(alone.model), logits(layout.load_for_inference(base, dtype).model))
