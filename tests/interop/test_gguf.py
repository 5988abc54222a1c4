"""GGUF files, read with the package that llama.cpp's authors read them with.

Skipped where the extra ``gguf`` is not installed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_map
from support.adapted import adapter_run, base_run
from support.extras import extra
from support.foreign_models import saved
from support.models import BYTES, network, saved_in
from tokenizers import Regex
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from typer.testing import CliRunner

import mlxchat
from mlxchat.checkpoint import layout
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli.app import app
from mlxchat.errors import BackendError, CheckpointError, ConfigError, DiskError, MlxchatError
from mlxchat.evaluate.temperature import NearestTemperatures
from mlxchat.home import Home
from mlxchat.interop import exporters
from mlxchat.interop.exporters.ollama import CHAT_GO_TEMPLATE
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Quantization
from mlxchat.quantize import quantize
from mlxchat.runtime import mx
from mlxchat.telemetry.meter import CorePoint
from mlxchat.tokenizer.bpe import SPLIT_PATTERN, Tokenizer
from mlxchat.tokenizer.files import CHAT_TEMPLATE

gguf = extra("gguf")

MEASURED = CorePoint(step=7, core=0.1, error=0.01, max_per_task=500)
HISTORY = History(tag="my model", step=7, bits_per_byte=1.25, core=MEASURED)
NEAREST = NearestTemperatures(usual=0.75, one=1.2, positions=512, text="a text")
IDS = [256, *range(40, 70)]
TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
# src/unicode-data.cpp and src/llama-vocab.cpp of llama.cpp split so under the name llama-bpe
LLAMA_BPE = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def small(tokenizer: Tokenizer = BYTES, conversational: bool = True, **shape: Any) -> SavedModel:
    """A classic model whose logits pass the cap, and whose every part counts."""
    fields = {"sequence_len": 64, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64}
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **{**fields, **shape})
    model, keys = GPT(config), iter(mx.random.split(mx.random.key(3), 64))
    draw = tree_map(lambda w: 0.4 * mx.random.normal(w.shape, key=next(keys)), model.parameters())
    model.update(draw)
    return SavedModel(model, tokenizer, conversational)


def written(folder: Path, model: SavedModel, kind: str | None = None) -> Any:
    """The reader of an exported file."""
    exporters.write("gguf", folder, model, HISTORY, mx.float32, quantize=kind, temperatures=NEAREST)
    [file] = folder.glob("*.gguf")
    return gguf.GGUFReader(file)


def field(reader: Any, key: str) -> Any:
    found = reader.get_field(key)
    return None if found is None else found.contents()


def tensors(reader: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The values by name, dequantized."""
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(
            tuple(reversed([int(size) for size in tensor.shape]))
        )
        for tensor in reader.tensors
    }


# ==== The network, as src/models/apertus.cpp of llama.cpp computes it from a file ====


def rms(x: Any, weight: Any, eps: float) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotated(x: Any, base: float) -> Any:
    """Rotary embedding of (T, H, D), pairs half a head apart, by plus theta."""
    T, _, D = x.shape
    theta = np.arange(T)[:, None] * base ** (-np.arange(0, D, 2) / D)
    cos, sin = np.cos(theta)[:, None], np.sin(theta)[:, None]
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def xielu(x: Any, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Any:
    positive, negative = np.logaddexp(0, alpha_p), beta + np.logaddexp(0, alpha_n)
    below = (np.expm1(np.minimum(x, eps)) - x) * negative + beta * x
    return np.where(x > 0, positive * x * x + beta * x, below)


def apertus(reader: Any, ids: list[int]) -> Any:
    """Logits, (T, V), in float64."""
    weights = {name: values.astype(np.float64) for name, values in tensors(reader).items()}
    heads, kv_heads = (
        field(reader, f"apertus.attention.{n}") for n in ("head_count", "head_count_kv")
    )
    eps = field(reader, "apertus.attention.layer_norm_rms_epsilon")
    base = field(reader, "apertus.rope.freq_base")
    D, T = field(reader, "apertus.rope.dimension_count"), len(ids)
    x = weights["token_embd.weight"][ids]
    for layer in range(field(reader, "apertus.block_count")):
        own = {
            name.split(".")[2]: values
            for name, values in weights.items()
            if name.startswith(f"blk.{layer}.")
        }
        y = rms(x, own["attn_norm"], eps)
        q, k, v = (
            (y @ own[f"attn_{n}"].T).reshape(T, count, D)
            for n, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q = rotated(rms(q, own["attn_q_norm"], eps), base)
        k = rotated(rms(k, own["attn_k_norm"], eps), base)
        k, v = (np.repeat(each, heads // kv_heads, axis=1) for each in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(D)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        y = np.einsum("hts,shd->thd", attention, v).reshape(T, -1)
        x = x + y @ own["attn_output"].T
        y = rms(x, own["ffn_norm"], eps) @ own["ffn_up"].T
        parts = (field(reader, f"xielu.{n}")[layer] for n in ("alpha_p", "alpha_n", "beta", "eps"))
        x = x + xielu(y, *parts) @ own["ffn_down"].T
    return rms(x, weights["output_norm.weight"], eps) @ weights["output.weight"].T


def before_the_cap(model: GPT, ids: list[int]) -> Any:
    logits = model.lm_head(model.features(mx.array([ids])))[0, :, : model.config.vocab_size]
    return np.array(logits, np.float64)


@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_file_computes_our_logits_before_the_cap(
    conversational: bool, kv_heads: int, tmp_path: Path
) -> None:
    model = small(conversational=conversational, n_head=4, n_kv_head=kv_heads)
    expected = before_the_cap(model.model, IDS)
    assert np.abs(expected).max() > 10  # else the cap would change little
    found = apertus(written(tmp_path / "out", model, "f32"), IDS)
    assert np.abs(found - expected).max() < 1e-4
    capped = 15 * np.tanh(found / 15)
    assert np.abs(capped - np.array(model.model(mx.array([IDS]))[0])).max() < 1e-4


def test_the_file_computes_nanochats_own_logits(tmp_path: Path) -> None:
    model = saved(tmp_path / "a", "classic")
    ids = [[1, 5, 9, 2, 77, 40], [3, 3, 96, 0, 1, 2]]
    reader = written(tmp_path / "out", model, "f32")
    for row in ids:
        found = 15 * np.tanh(apertus(reader, row) / 15)
        assert np.abs(found - np.array(model.model(mx.array([row]))[0])).max() < 1e-4


def test_rows_that_pad_the_vocabulary_are_cut_off(tmp_path: Path) -> None:
    model = small(vocab_multiple=64)
    assert model.model.lm_head.weight.shape == (320, 64)
    reader = written(tmp_path / "out", model, "f32")
    assert tensors(reader)["token_embd.weight"].shape == (265, 64)
    assert tensors(reader)["output.weight"].shape == (265, 64)
    assert field(reader, "apertus.vocab_size") == len(field(reader, "tokenizer.ggml.tokens")) == 265
    found = apertus(reader, IDS)
    assert np.abs(found - before_the_cap(model.model, IDS)).max() < 1e-4


@pytest.mark.parametrize("conversational", [True, False])
def test_keys_describe_the_network(conversational: bool, tmp_path: Path) -> None:
    reader = written(tmp_path / "out", small(conversational=conversational, n_kv_head=1))
    expected = {
        "general.architecture": "apertus",
        "general.name": "my model",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "general.sampling.top_k": 50,
        "apertus.context_length": 64,
        "apertus.embedding_length": 64,
        "apertus.block_count": 2,
        "apertus.feed_forward_length": 256,
        "apertus.attention.head_count": 2,
        "apertus.attention.head_count_kv": 1,
        "apertus.rope.dimension_count": 32,
        "apertus.rope.freq_base": 10_000,
        "apertus.vocab_size": 265,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 260 if conversational else 256,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE if conversational else None,
    }
    assert {key: field(reader, key) for key in expected} == expected
    eps = field(reader, "apertus.attention.layer_norm_rms_epsilon")
    assert eps == pytest.approx(np.finfo(np.float32).eps)
    alpha_p, alpha_n = (field(reader, f"xielu.{name}") for name in ("alpha_p", "alpha_n"))
    assert np.logaddexp(0, alpha_p) == pytest.approx([1, 1], abs=1e-7)
    assert np.logaddexp(0, alpha_n).tolist() == [0, 0]
    assert field(reader, "xielu.beta") == [0, 0]


def test_shapes_and_types_are_those_of_apertus(tmp_path: Path) -> None:
    reader = written(tmp_path / "out", small(n_kv_head=1), "q4_0")
    found = {
        tensor.name: (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())))
        for tensor in reader.tensors
    }
    layer = {
        "attn_norm": ("F32", (64,)),
        "attn_q": ("Q4_0", (64, 64)),
        "attn_k": ("Q4_0", (32, 64)),
        "attn_v": ("Q4_0", (32, 64)),
        "attn_output": ("Q4_0", (64, 64)),
        "attn_q_norm": ("F32", (32,)),
        "attn_k_norm": ("F32", (32,)),
        "ffn_norm": ("F32", (64,)),
        "ffn_up": ("Q4_0", (256, 64)),
        "ffn_down": ("Q4_0", (64, 256)),
    }
    expected = {
        "token_embd.weight": ("Q4_0", (265, 64)),
        "output.weight": ("Q8_0", (265, 64)),
        "output_norm.weight": ("F32", (64,)),
    }
    for i in range(2):
        expected |= {f"blk.{i}.{name}.weight": value for name, value in layer.items()}
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("f16", 0),  # but for the rounding of 11 bits, of scales too
        ("bf16", 2**-8),
        ("q8_0", 1 / 254),  # half a step
        ("q5_1", 1 / 31),
        ("q5_0", 1 / 16),  # a whole one: the far end of the range is cut off
        ("q4_1", 1 / 15),
        ("q4_0", 1 / 8),
    ],
)
def test_values_are_those_of_the_model_as_exactly_as_the_type_can_be(
    kind: str, step: float, tmp_path: Path
) -> None:
    model = small()
    exact = tensors(written(tmp_path / "f32", model, "f32"))
    for name, values in tensors(written(tmp_path / kind, model, kind)).items():
        largest = np.abs(exact[name]).reshape(-1, 32).max(1)[:, None]
        error = np.abs(values - exact[name]).reshape(-1, 32)
        assert (error <= (step + 2**-10) * largest + 1e-7).all(), name
        assert name.endswith("norm.weight") or error.any(), name


def test_weights_of_a_quantized_model_are_its_values(tmp_path: Path) -> None:
    model = small()
    quantize(model.model, Quantization(bits=4, group_size=32).formats(model.model.config))
    reader = written(tmp_path / "out", model, "f32")
    expected = before_the_cap(model.model, IDS)
    assert np.abs(apertus(reader, IDS) - expected).max() < 1e-3 * np.abs(expected).max()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| quantized | 4 bits" in card


def test_an_adapter_is_a_part_of_the_weights(home: Path, tmp_path: Path) -> None:
    base = base_run(Home(home), small())
    adapted = adapter_run(Home(home), base, "tuned")
    out = tmp_path / "out"
    to = ["export", "--to", "gguf", "--checkpoint", str(adapted), "--out", str(out)]
    result = CliRunner().invoke(app, [*to, "--quantize", "f32"])
    assert result.exit_code == 0, result.output
    expected = before_the_cap(layout.read_model(adapted, mx.float32).model, IDS)
    [file] = out.glob("*.gguf")
    assert np.abs(apertus(gguf.GGUFReader(file), IDS) - expected).max() < 1e-3
    assert np.abs(before_the_cap(small().model, IDS) - expected).max() > 1


# ==== Tokens ====


def test_tokens_and_merges_encode_as_ours(tmp_path: Path) -> None:
    texts = ["The cow's calf, 12 of them: naïve 日本語\n\n  don't  \t x = 3.5;"]
    tokenizer = Tokenizer.train(texts * 3 + ["12 34 " * 9], vocab_size=300)
    reader = written(tmp_path / "out", small(tokenizer), "q8_0")
    tokens, merges, kinds = (
        field(reader, f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type")
    )
    assert len(tokens) == len(kinds) == tokenizer.vocab_size
    special = {tokens[i]: i for i, kind in enumerate(kinds) if kind == 3}
    assert special == tokenizer.special_tokens and set(kinds) == {1, 3}
    assert len(merges) == len(tokenizer.ranks) - 256
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    theirs = BPE(vocab=vocabulary, merges=pairs, ignore_merges=True)
    split = Split(Regex(LLAMA_BPE), "isolated")
    pre = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])

    def encode(text: str) -> list[int]:
        pieces = [piece for piece, _ in pre.pre_tokenize_str(text)]
        return [token.id for piece in pieces for token in theirs.tokenize(piece)]

    assert encode(texts[0]) == tokenizer.encode(texts[0])
    assert encode("1234") != tokenizer.encode("1234")  # as the card says


@pytest.mark.parametrize(("digits", "warned"), [(2, True), (3, False)])
def test_long_numbers_are_warned_of_where_they_are_split_otherwise(
    digits: int, warned: bool, tmp_path: Path
) -> None:
    pattern = SPLIT_PATTERN.replace("{1,2}", f"{{1,{digits}}}")
    tokenizer = Tokenizer(BYTES.ranks, pattern, BYTES.special_tokens)
    written(tmp_path / "out", small(tokenizer))
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("three or more digits" in card) == warned


# ==== What is beside the file ====


def test_the_modelfile_has_template_stops_and_sampling(tmp_path: Path) -> None:
    reader = written(tmp_path / "out", small(), "q8_0")
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./my-model-Q8_0.gguf"
    assert (tmp_path / "out" / "my-model-Q8_0.gguf").exists()
    assert f'TEMPLATE """{CHAT_GO_TEMPLATE}"""' in "\n".join(lines)
    assert field(reader, "general.sampling.temp") == 0.75
    for line in (
        "PARAMETER num_ctx 64",
        "PARAMETER temperature 0.75",
        "PARAMETER top_k 50",
        "PARAMETER repeat_penalty 1.0",
        'PARAMETER stop "<|assistant_end|>"',
        'PARAMETER stop "<|bos|>"',
    ):
        assert line in lines


def test_the_modelfile_of_a_base_model_continues_text(tmp_path: Path) -> None:
    written(tmp_path / "out", small(conversational=False))
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert 'TEMPLATE """{{ .Prompt }}"""' in text and "<|user_start|>" not in text


def test_the_card_has_commands_and_warnings(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    out = exporters.write(
        "gguf", folder, small(), HISTORY, mx.float32, quantize="q5_0", temperatures=NEAREST
    )
    card = " ".join((folder / "README.md").read_text().split())
    for text in (
        "## With llama.cpp, Ollama and LM Studio",
        "llama-cli -m DIR/my-model-Q5_0.gguf",
        "ollama create my-model -f DIR/Modelfile && ollama run my-model",
        "lms import --copy DIR/my-model-Q5_0.gguf",
        "The soft cap of the logits is left out.",
        "0.6 without the cap is 0.75, and 1.20 to mlxchat's 1 (measured at 512 positions of a "
        "text)",
        "Numbers of three or more digits",
        "Only classic models can be exported",
        "The matrices are Q5_0, except for the head, which is Q8_0.",
    ):
        assert text in card
    assert "bits per byte" not in card and "CORE" not in card  # they were measured with the cap
    assert out.usage.at("/it's")[1] == "llama-cli -m '/it'\"'\"'s'/my-model-Q5_0.gguf"


def test_progress_is_told_in_bytes_of_the_file(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    written = exporters.write(
        "gguf",
        tmp_path / "out",
        small(),
        HISTORY,
        mx.float32,
        lambda *how_far: told.append(how_far),
        temperatures=NEAREST,
    )
    assert told == sorted(told) and told[-1][0] == told[-1][1] < written.bytes


def test_a_base_model_is_given_a_text(tmp_path: Path) -> None:
    model = small(conversational=False)
    out = exporters.write(
        "gguf", tmp_path / "out", model, HISTORY, mx.float32, temperatures=NEAREST
    )
    assert out.usage.commands[1].startswith("llama-completion")


# ==== What is refused ====


def require_readable(
    program: Any, config: GPTConfig, folder: Path, kind: str | None = None
) -> None:
    exporters.require_readable(
        program, config, quantized=False, adapted=False, folder=folder, quantize=kind
    )


def test_modern_models_are_refused_with_the_reason(tmp_path: Path) -> None:
    source = saved_in(tmp_path / "model", network(arch="modern"))
    with pytest.raises(CheckpointError, match="only supports nanochat's classic network") as caught:
        exporters.require_possible("gguf", source, tmp_path / "out")
    assert "value embeddings" in caught.value.problem and "to=mlx-lm" in caught.value.remedy


def test_rows_that_cannot_be_packed_are_refused(tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=265, n_layer=1, n_head=2, n_kv_head=2, n_embd=48)
    require_readable("gguf", config, tmp_path / "out", "f16")
    with pytest.raises(CheckpointError, match="width, 48"):
        require_readable("gguf", config, tmp_path / "out", "q8_0")


@pytest.mark.parametrize(
    ("program", "kind"), [("gguf", "4"), ("mlx-lm", "q8_0"), ("transformers", "f16")]
)
def test_types_of_other_programs_are_refused(program: Any, kind: str, tmp_path: Path) -> None:
    config = small().model.config
    with pytest.raises(ConfigError, match=f"does not support `quantize={kind}`"):
        require_readable(program, config, tmp_path / "out", kind)


def test_values_that_were_written_wrongly_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = exporters.exporter("gguf")
    right = module.stored_values  # type: ignore[attr-defined]

    def wrong(values: Any, kind: Any) -> Any:
        return right(values * (1.02 if values.shape == (64, 256) else 1), kind)

    monkeypatch.setattr(module, "stored_values", wrong)
    with pytest.raises(DiskError, match=r"with different values.*: blk\.0\.ffn_down\.weight\."):
        written(tmp_path / "out", small(), "q8_0")
    assert not list(tmp_path.iterdir())


def test_weights_that_the_type_cannot_hold_are_noticed(tmp_path: Path) -> None:
    model = small()
    model.model.lm_head.weight = 1e6 * model.model.lm_head.weight
    with pytest.raises(DiskError, match=r"output\.weight") as caught:
        written(tmp_path / "out", model, "f16")
    assert "quantize=f32" in caught.value.remedy


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for name in [name for name in sys.modules if "exporters.gguf" in name]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BackendError, match="not installed") as caught:
        require_readable("gguf", small().model.config, tmp_path / "out")
    assert "[gguf]" in caught.value.remedy


# ==== The command, and Python ====


def test_the_command_exports_and_prints_the_next_steps(tmp_path: Path) -> None:
    source = saved_in(tmp_path / "model", small())
    to = ["export", "--to", "gguf", "--checkpoint", str(source), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*to, "--quantize", "q8_0", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["program"] == "gguf" and "llama-cli" in facts["commands"][1]
    assert "measured on the built-in corpus" in result.stderr
    refused = CliRunner().invoke(app, [*to[:-1], str(tmp_path / "b"), "--dtype", "float16"])
    assert isinstance(refused.exception, MlxchatError)
    assert "data types of their own" in refused.exception.problem


def test_python_exports_too(tmp_path: Path) -> None:
    model = mlxchat.load(saved_in(tmp_path / "model", small()))
    folder = model.export("gguf", tmp_path / "out", quantize="bf16")
    assert (folder / "model-BF16.gguf").exists()
    small_one = model.quantize(8).export("gguf", tmp_path / "small")
    assert (small_one / "model-8bit-F16.gguf").exists()
    with pytest.raises(ConfigError, match="data types of their own"):
        model.export("gguf", tmp_path / "other", dtype="float16")
    with pytest.raises(ConfigError, match="only takes gguf's data types"):
        model.export("mlx-lm", tmp_path / "other", quantize="q8_0")
