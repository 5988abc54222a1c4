"""Quantized models: what they compute, what is stored and read again, what is refused."""

import json
from itertools import product
from pathlib import Path

import pytest
from mlx.utils import tree_map
from support.extras import extra
from support.memory import memory_held

from mlxchat.checkpoint import files, layout, store, trainer
from mlxchat.cli.quantize import quantize_command
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.engine.cache import KVCache
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.block import Linear
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import (
    BITS,
    FLOATING,
    GROUP_SIZES,
    Format,
    Quantization,
    from_config,
    to_config,
)
from mlxchat.model.quantized import DIRECT_ROWS, formats_of, quantize_layers
from mlxchat.quantize import quantize
from mlxchat.runtime import machine, mx
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from mlxchat.train.pretrain import Pretraining, run_pretraining

BYTES = Tokenizer(
    {bytes([i]): i for i in range(256)},
    SPLIT_PATTERN,
    {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)},
)
AFFINE = [Format(group_size=size, bits=bits) for bits, size in product(BITS, GROUP_SIZES)]
FORMATS = [*AFFINE, *FLOATING.values()]
FLOATING_ERROR = {"mxfp4": 0.15, "mxfp8": 0.03, "nvfp4": 0.15}  # of uniform weights
TINY = PretrainConfig.model_validate(
    {
        "depth": 1,
        "dataset": "builtin",
        "vocab_size": 300,
        "max_seq_len": 32,
        "device_batch_size": 4,
        "total_batch_size": 256,
        "num_iterations": 2,
        "eval_every": 0,
        "sample_every": 0,
        "model_tag": "tiny",
    }
)


def network(arch: Architecture = "classic", n_layer: int = 3) -> GPT:
    """A small network with random weights, none of them zero."""
    config = GPTConfig(
        arch=arch, sequence_len=64, vocab_size=BYTES.vocab_size, n_layer=n_layer, n_head=2,
        n_kv_head=2, n_embd=64, window_pattern="L" if arch == "classic" else "SL",
    )  # fmt: skip
    model, key = GPT(config, machine().compute_dtype), iter(mx.random.split(mx.random.key(1), 64))
    model.update(
        tree_map(lambda w: 0.3 * mx.random.normal(w.shape, key=next(key)), model.parameters())
    )
    return model


def dequantized(model: GPT) -> GPT:
    """The same network with the numbers that its quantized weights stand for."""
    dense = GPT(model.config, model.dtype)
    weights = model.named_parameters()
    for name, format in formats_of(model).items():
        parts = [weights.pop(f"{name}.{part}", None) for part in ("weight", "scales", "biases")]
        weights[f"{name}.weight"] = mx.dequantize(*parts, **format.model_dump())
    dense.load_weights(list(weights.items()))
    return dense


def ids(length: int = 16) -> mx.array:
    return mx.random.randint(0, BYTES.vocab_size, (2, length), key=mx.random.key(2))


def furthest(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max().item())


def close() -> float:
    return 1e-4 if machine().compute_dtype == mx.float32 else 0.3


def save(folder: Path, model: GPT) -> Path:
    return store.save(folder, 3, lambda path: layout.write_model(path, model, BYTES, False))


def read(folder: Path) -> GPT:
    return layout.read_model(folder, machine().compute_dtype).model


# What is computed


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("rows", [1, DIRECT_ROWS, DIRECT_ROWS + 1])
def test_a_quantized_layer_computes_what_its_weights_stand_for(format: Format, rows: int) -> None:
    dense = Linear(128, 32)
    layer = dense.to_quantized(**format.model_dump())
    x = mx.random.normal((1, rows, 128), key=mx.random.key(0))
    onto = mx.random.normal((1, rows, 32), key=mx.random.key(1))
    product = x @ layer.dense.astype(x.dtype).T
    assert furthest(layer(x), product) < 1e-4
    assert furthest(layer(x, onto), onto + product) < 1e-4
    assert layer(x, onto).dtype == x.dtype
    assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    share = mx.abs(layer.dense - dense.weight).mean() / mx.abs(dense.weight).mean()
    assert share.item() < FLOATING_ERROR.get(format.mode, 2.4 / 2**format.bits)


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize(
    "quantization",
    [
        Quantization(bits=4),
        Quantization(bits=3, group_size=32, mixed=True),
        Quantization(mode="mxfp8"),
    ],
    ids=lambda quantization: quantization.name,
)
def test_a_quantized_network_computes_what_its_weights_stand_for(
    arch: Architecture, quantization: Quantization
) -> None:
    model = network(arch)
    quantize(model, quantization.formats(model.config))
    reference = dequantized(model)
    assert furthest(model(ids()), reference(ids())) < close()
    targets = mx.roll(ids(), -1, axis=1)
    assert furthest(model.losses(ids(), targets), reference.losses(ids(), targets)) < close()
    cache, pieces = KVCache(model.config), mx.split(ids(), [9, 10, 11], axis=1)
    logits = mx.concatenate([model(piece, cache) for piece in pieces], axis=1)
    assert furthest(logits, reference(ids())) < close()


def test_more_bits_lose_less() -> None:
    model = network()
    exact, errors = model(ids()), []
    for bits in BITS:
        copy = network()
        quantize(copy, Quantization(bits=bits).formats(copy.config))
        errors.append(mx.abs(copy(ids()) - exact).mean().item())
    assert errors == sorted(errors, reverse=True)


# What is quantized, and how it is counted


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_all_matrices_but_the_gates_are_quantized(arch: Architecture) -> None:
    model = network(arch)
    matrices = {
        n.removesuffix(".weight") for n, w in model.named_parameters().items() if w.ndim > 1
    }
    expected = {name for name in matrices if "gate" not in name}
    assert len(matrices - expected) == (0 if arch == "classic" else 3)
    formats = Quantization().formats(model.config)
    assert formats.keys() == expected
    quantize(model, formats)
    assert formats_of(model) == formats


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_the_parts_sum_up_to_the_model(arch: Architecture) -> None:
    model = network(arch)
    before = model.named_parameters().values()
    parameters, size = sum(w.size for w in before), sum(w.nbytes for w in before)
    parts = quantize(model, Quantization(mixed=True).formats(model.config))
    after = sum(w.nbytes for w in model.named_parameters().values())
    assert sum(part.parameters for part in parts) == parameters
    assert sum(part.bytes_before for part in parts) == size
    assert sum(part.bytes_after for part in parts) == after
    scales = 8 * machine().compute_dtype.size * 2 / 64  # with offsets, a weight
    bits = {(part.name, part.bits_per_weight - scales) for part in parts[:4]}
    assert bits >= {("embedding", 4), ("blocks", 6), ("blocks", 4)}


@pytest.mark.parametrize(
    ("bits", "expected"), [(4, (8, 6, 6)), (3, (6, 5, 5)), (2, (5, 4, 4)), (5, (8, 8, 8))]
)
def test_mixed_gives_sensitive_layers_more(bits: int, expected: tuple[int, ...]) -> None:
    formats = Quantization(bits=bits, mixed=True).formats(network(n_layer=4).config)
    kinds = ("attn.c_v", "attn.c_proj", "mlp.c_fc")
    for name, format in formats.items():
        more = [b for kind, b in zip(kinds, expected, strict=True) if name.endswith(kind)]
        assert format.bits == (more or [bits])[0], name


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_depth_12_shrinks_as_promised(arch: Architecture) -> None:
    config = GPTConfig.from_depth(12, 65_536, 2048, arch=arch)
    for quantization, most in ((Quantization(bits=4), 0.16), (Quantization(mixed=True), 0.18)):
        formats = quantization.formats(config)
        model = GPT(config)
        weights, bits = 0, 0.0
        for name, parameter in model.named_parameters().items():
            weights += parameter.size
            format = formats.get(name.removesuffix(".weight"))
            each = format.bits + 2 * 32 / format.group_size if format else 32
            bits += parameter.size * each
        assert bits / (32 * weights) <= most


def test_layers_are_quantized_one_after_another() -> None:
    others = memory_held()
    model = network(n_layer=8)
    mx.eval(model.parameters())
    before, largest = mx.get_active_memory() - others, 4 * 4 * 64 * 64
    mx.reset_peak_memory()
    quantize(model, Quantization(group_size=32).formats(model.config))
    assert mx.get_peak_memory() - others < before + 4 * largest
    assert mx.get_active_memory() - others < 0.3 * before


# What is stored and read again


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("mode", ["affine", "nvfp4"])
def test_a_quantized_model_is_read_as_it_was_written(
    arch: Architecture, mode: str, tmp_path: Path
) -> None:
    model = network(arch)
    mixed = mode == "affine"
    quantize(model, Quantization(mode=mode, mixed=mixed).formats(model.config))
    copy = read(save(tmp_path, model))
    assert formats_of(copy) == formats_of(model)
    stored, held = copy.named_parameters(), model.named_parameters()
    assert stored.keys() == held.keys()
    assert all(mx.array_equal(stored[name], held[name]).item() for name in held)
    copy.cast_matrices()
    assert furthest(copy(ids()), model(ids())) == 0


def test_config_as_mlx_lm_reads_it(tmp_path: Path) -> None:
    model = network(n_layer=8)
    quantize(model, Quantization(mixed=True).formats(model.config))
    entry = json.loads((save(tmp_path, model) / layout.CONFIG).read_text())["quantization"]
    common = {"group_size": 64, "bits": 4, "mode": "affine"}
    single = {name: entry.pop(name) for name in sorted(entry.keys() - common.keys())}
    assert entry == common
    expected = {"attn.c_v": 8, "attn.c_proj": 6, "mlp.c_fc": 6}
    assert single == {
        f"transformer.h.{layer}.{name}": {**common, "bits": bits}
        for layer in range(8)
        for name, bits in expected.items()
    }
    read_back = from_config({**entry, **single})
    assert read_back == (Format(**common), {n: Format(**f) for n, f in single.items()})
    assert to_config(formats_of(model)) == {**entry, **single}


@pytest.mark.slow
def test_mlx_lm_reads_it(tmp_path: Path) -> None:
    utils = extra("mlx_lm.utils")
    for number, quantization in enumerate((Quantization(), Quantization(bits=3, mixed=True))):
        model = network()
        quantize(model, quantization.formats(model.config))
        theirs, _ = utils.load_model(save(tmp_path / str(number), model))
        assert furthest(theirs(ids()), model(ids())) < 1e-3


def test_layers_that_mlx_lm_left_dense_are_read(tmp_path: Path) -> None:
    model = network()
    formats = Quantization().formats(model.config)
    head = formats.pop("lm_head")
    quantize_layers(model, formats)
    folder = save(tmp_path, model)
    config = json.loads((folder / layout.CONFIG).read_text())
    config["quantization"] = {"group_size": head.group_size, "bits": 4, "lm_head": False}
    (folder / layout.CONFIG).write_text(json.dumps(config))
    (folder / files.CHECKSUMS).unlink()
    copy = read(folder)
    assert formats_of(copy) == formats
    assert furthest(copy(ids()), model(ids())) < close()


@pytest.mark.parametrize(
    "entry", [[4], {"bits": 4}, {"group_size": 64, "bits": 7}, {"group_size": 48, "bits": 4}]
)
def test_a_damaged_entry_is_named(entry: object, tmp_path: Path) -> None:
    model = network()
    quantize(model, Quantization().formats(model.config))
    folder = save(tmp_path, model)
    config = json.loads((folder / layout.CONFIG).read_text())
    (folder / layout.CONFIG).write_text(json.dumps({**config, "quantization": entry}))
    (folder / files.CHECKSUMS).unlink()
    with pytest.raises(MlxchatError, match=r"config\.json is damaged"):
        read(folder)


def test_other_bits_than_the_config_says_are_refused(tmp_path: Path) -> None:
    model = network()
    quantize(model, Quantization(bits=4).formats(model.config))
    folder = save(tmp_path, model)
    config = json.loads((folder / layout.CONFIG).read_text())
    config["quantization"]["bits"] = 8
    (folder / layout.CONFIG).write_text(json.dumps(config))
    (folder / files.CHECKSUMS).unlink()
    with pytest.raises(MlxchatError, match=r"lm_head\.weight has shape"):
        read(folder)


# What is refused


@pytest.mark.parametrize(
    ("given", "problem", "remedy"),
    [
        ({"bits": 7}, "`bits=7`", "Use 2, 3, 4, 5, 6 or 8"),
        ({"group_size": 16}, "`group_size=16`", "Use 32, 64 or 128"),
        ({"mode": "mxfp4", "bits": 8}, "`bits=8` cannot be combined with `mode=mxfp4`", "`bits`"),
        ({"mode": "nvfp4", "group_size": 32}, "which has 16", "`group_size`"),
        (
            {"mode": "mxfp8", "mixed": True},
            "`mixed` cannot be combined with `mode=mxfp8`",
            "one of",
        ),
        ({"bits": 8, "mixed": True}, "`mixed` cannot be combined with `bits=8`", "one of"),
    ],
)
def test_settings_that_do_not_exist_are_refused(given: dict, problem: str, remedy: str) -> None:
    with pytest.raises(MlxchatError) as raised:
        Quantization(**given)
    assert problem in raised.value.problem
    assert remedy in raised.value.remedy


@pytest.mark.parametrize(
    ("given", "width", "remedy"),
    [
        ({}, 96, "`group_size=32`"),
        ({"group_size": 128}, 64, "`group_size=64`"),
        ({"mode": "mxfp4"}, 48, "Only models whose width is a multiple of 32"),
        ({}, 48, "Only models whose width is a multiple of 32"),
    ],
)
def test_rows_that_groups_do_not_divide_are_refused(given: dict, width: int, remedy: str) -> None:
    config = GPTConfig(vocab_size=265, n_layer=1, n_head=2, n_kv_head=2, n_embd=width)
    with pytest.raises(MlxchatError, match=f"wte have {width} weights") as raised:
        Quantization(**given).formats(config)
    assert remedy in raised.value.remedy


@pytest.fixture
def trained(prepared_home: Path) -> Path:
    """A run of two steps in the home."""
    for _ in run_pretraining(TINY, Home(prepared_home), lambda _: None):
        pass
    return prepared_home


def run(json: bool = True, tag: str | None = "tiny", tokens: int = 128, **given: object) -> None:
    checkpoint = given.pop("checkpoint", None)
    quantize_command(Quantization(**given), tag, None, checkpoint, tokens, json=json)


def test_a_saved_step_becomes_a_run_of_its_own(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    facts = json.loads(capsys.readouterr().out)
    source, folder = (
        trained / "base_checkpoints" / n / "step_000002" for n in ("tiny", "tiny-4bit")
    )
    assert facts["path"] == str(folder)
    assert facts["bytes_after"] < 0.25 * facts["bytes_before"]
    assert facts["validation_tokens"] == 128
    assert facts["bits_per_byte_after"] == pytest.approx(facts["bits_per_byte_before"], rel=0.1)
    assert {path.name for path in source.iterdir()} - {path.name for path in folder.iterdir()} == {
        trainer.OPTIMIZER,
        trainer.LOADER,
        layout.TRAINER,
    }
    copied = layout.read_model(folder, machine().compute_dtype)
    assert copied.conversational == layout.read_model(source, mx.float32).conversational
    with pytest.raises(MlxchatError, match=r"tiny-4bit.* is quantized, so its training") as raised:
        Pretraining(TINY.model_copy(update={"model_tag": "tiny-4bit"}), Home(trained)).saved()
    assert "`model_tag`" in raised.value.remedy
    with pytest.raises(MlxchatError, match="already quantized") as raised:
        run(tag="tiny-4bit")
    assert f"mlxchat chat --checkpoint {folder}" in raised.value.remedy  # not the model saved last
    with pytest.raises(MlxchatError, match="There is already a quantized copy") as raised:
        run()
    assert "mlxchat chat --model-tag tiny-4bit" in raised.value.remedy


def test_the_result_is_shown_in_words(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(json=False, bits=3, group_size=32, mixed=True)
    said = capsys.readouterr().out
    assert "5 bits, groups of 32" in said
    assert "bits per byte before" in said
    assert "mlxchat chat --model-tag tiny-3bit-g32-mixed" in said


def test_without_validation_text_nothing_is_measured(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = trained / "copied"
    (trained / "base_checkpoints/tiny/step_000002").rename(elsewhere)
    (elsewhere / layout.TRAINER).unlink()
    run(tag=None, checkpoint=elsewhere)
    said = capsys.readouterr()
    assert "Bits per byte were not measured" in said.err
    facts = json.loads(said.out)
    assert facts["bits_per_byte_after"] is None
    assert Path(facts["path"]).parts[-2:] == ("copied-4bit", "step_000000")
    run(tag=None, checkpoint=elsewhere, tokens=0, mode="nvfp4")
    assert "not measured" not in capsys.readouterr().err


def test_a_failed_save_leaves_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout, "write_model", full)
    with pytest.raises(MlxchatError, match="No space left"):
        run()
    assert not (trained / "base_checkpoints/tiny-4bit").exists()
