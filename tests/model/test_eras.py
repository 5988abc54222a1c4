"""Models of every era against nanochat's own code.

The numbers in golden/eras come from nanochat's gpt.py at each case's commit, run with PyTorch 2.13
on a CPU, with the config in cases.json and the parameters that `drawn` draws. Everything was
float32, even the rotary tables that nanochat keeps in bfloat16. At fbc1484, flash_attention.py of
92d63d4 replaced Flash Attention 3; it computes the same. The files hold the logits of sixteen
positions per row, and all losses.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cases import GOLDEN, golden
from support.marks import slow

from mlxchat.checkpoint import layout
from mlxchat.engine.cache import KVCache
from mlxchat.errors import MlxchatError
from mlxchat.model.backward import ordered_loss
from mlxchat.model.config import ERAS, GPTConfig, era_of
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Quantization, quantizable
from mlxchat.model.quantized import quantize_layers
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.optim.optimizer import PARAM_GROUPS, MuonAdamW, Rates, group_of
from mlxchat.runtime import mx, nn, tree_flatten
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

CASES = golden("eras/cases.json")
ERA_OF_CASE = {
    "classic_padded": "classic",
    "lambdas_windows": "lambdas",
    "gates_32_softcap_20": "gates_32",
    "modern_first": "modern",
}
PADDED = CASES.keys() - {"classic"}
BYTES = Tokenizer(
    {bytes([i]): i for i in range(256)},
    SPLIT_PATTERN,
    {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)},
)


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a parameter in which no number is zero."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        numbers = 0.7 + 0.2 * numbers
    elif not any(part in name for part in ("wte", "value_embeds", "lm_head")):
        numbers = numbers / shape[1] ** 0.5
    return numbers.astype(np.float32)


class Case:
    """A model of nanochat's with the numbers that it computed."""

    def __init__(self, name: str) -> None:
        self.facts = CASES[name]
        self.shapes = {n: tuple(shape) for n, shape in self.facts["parameters"].items()}
        era = ERAS[ERA_OF_CASE.get(name, name)]
        self.config = GPTConfig(
            arch=era.arch,
            era=era.name,
            softcap=20.0 if "softcap_20" in name else era.softcaps[0],
            vocab_multiple=64 if name in PADDED else 1,
            **self.facts["config"],
        )
        self.io = mx.load(str(GOLDEN / "eras" / f"{name}.safetensors"))
        self.ids = self.io["ids"].astype(mx.int32)
        self.targets = self.io["targets"].astype(mx.int32)

    def model(self) -> GPT:
        return with_drawn(GPT(self.config))


def with_drawn(model: GPT) -> GPT:
    named = model.named_parameters()
    model.load_weights([(n, mx.array(drawn(n, w.shape))) for n, w in named.items()])
    return model


def small(era: str) -> GPT:
    """Return a small network of an era, with a vocabulary of bytes."""
    config = GPTConfig(
        arch=ERAS[era].arch, era=era, sequence_len=64, vocab_size=BYTES.vocab_size, n_layer=3,
        n_head=4, n_kv_head=2, n_embd=64, vocab_multiple=64,
        window_pattern="SL" if ERAS[era].short_window else "L",
    )  # fmt: skip
    return with_drawn(GPT(config))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def largest_difference(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a - b).max().item())


# ==== Forward pass ====


def test_parameters_and_flops_equal_nanochats(case: Case) -> None:
    named = case.model().named_parameters()
    assert {name: weight.shape for name, weight in named.items()} == case.shapes
    assert sum(weight.size for weight in named.values()) == sum(parameters(case.config).values())
    scalars = sum(w.size for name, w in named.items() if w.ndim == 1 or "smear" in name)
    assert abs(flops_per_token(case.config) - case.facts["flops"]) <= 6 * scalars


def test_logits_equal_nanochats(case: Case) -> None:
    logits, every = case.model()(case.ids), case.config.sequence_len // 16
    assert largest_difference(logits[:, ::every], case.io["logits"]) < 1e-4


def test_losses_equal_nanochats(case: Case) -> None:
    model, kept = case.model(), case.targets >= 0
    losses = model.losses(case.ids, case.targets)
    assert largest_difference(losses, mx.where(kept, case.io["losses"], 0)) < 1e-4
    assert model.loss(case.ids, case.targets).item() == pytest.approx(case.facts["loss"], abs=1e-4)


@pytest.mark.parametrize("context", [96, 1000, 2048])
def test_windows_equal_nanochats_at_any_context(case: Case, context: int) -> None:
    if not case.facts["windows"]:
        pytest.skip("nanochat had no windows yet")
    fields = case.config.model_dump() | {"sequence_len": context}
    assert list(GPTConfig(**fields).windows) == case.facts["windows"][str(context)]


@pytest.mark.parametrize("ready", [slow(False), True])
def test_decoding_in_pieces_equals_the_full_pass(case: Case, ready: bool) -> None:
    model, cache, T = case.model(), KVCache(case.config), case.ids.shape[1]
    expected = model(case.ids)
    if ready:
        model.prepare_for_inference()
    ends = [T // 2, T // 2 + 3, *range(T // 2 + 4, T // 2 + 24), T]
    starts = [0, *ends[:-1]]
    pieces = [model(case.ids[:, a:b], cache) for a, b in zip(starts, ends, strict=True)]
    assert largest_difference(mx.concatenate(pieces, axis=1), expected) < 1e-4


def test_bfloat16_is_close_and_stays_bfloat16(case: Case) -> None:
    half = with_drawn(GPT(case.config, mx.bfloat16))
    assert half.features(case.ids).dtype == mx.bfloat16
    loss = half.loss(case.ids, case.targets)
    assert loss.dtype == mx.float32
    assert loss.item() == pytest.approx(case.facts["loss"], rel=0.01)


def test_logits_depend_on_windows_and_softcap(case: Case) -> None:
    expected = case.model()(case.ids)
    others = [{"softcap": 25.0}] + [{"window_pattern": "L"}] * ("S" in case.config.window_pattern)
    for other in others:
        model = with_drawn(GPT(case.config.model_copy(update=other)))
        assert largest_difference(model(case.ids), expected) > 0.1


# ==== Training ====


def gradients(model: GPT, case: Case, **order: Any) -> dict[str, mx.array]:
    def loss(model: GPT) -> mx.array:
        return ordered_loss(model, case.ids, case.targets, **order)

    _, tree = nn.value_and_grad(model, loss)(model)
    return dict(tree_flatten(tree))


def test_gradients_equal_those_of_the_losses(case: Case) -> None:
    model, kept = case.model(), (case.targets >= 0).sum()

    def mean(model: GPT) -> mx.array:
        return model.losses(case.ids, case.targets).sum() / kept

    expected = dict(tree_flatten(nn.value_and_grad(model, mean)(model)[1]))
    zero = {name: mx.zeros_like(gradient) for name, gradient in expected.items()}
    for order in ({}, {"summed": zero}, {"checkpoint": True}):
        for name, gradient in gradients(model, case, **order).items():
            difference = mx.linalg.norm(gradient - expected[name])
            assert (difference / mx.linalg.norm(expected[name])).item() < 1e-4, name
            assert mx.abs(gradient).max().item() > 0, name


@pytest.mark.parametrize("era", ERAS)
def test_every_parameter_has_a_group_and_is_updated(era: str) -> None:
    model, ids = small(era), mx.arange(40).reshape(2, 20)
    before, arch = model.named_parameters(), model.config.arch
    assert {group_of(arch, name) for name in before} <= set(PARAM_GROUPS[arch])
    learning = {group.name: mx.array(0.01) for group in PARAM_GROUPS[arch]}
    rates = Rates(learning, momentum=mx.array(0.9), weight_decay=mx.array(0.0))
    loss, tree = nn.value_and_grad(model, lambda m: m.loss(ids, ids + 1))(model)
    MuonAdamW(model).update(model, dict(tree_flatten(tree)), rates)
    after = model.named_parameters()
    assert after.keys() == before.keys()
    assert not any(mx.array_equal(after[name], before[name]).item() for name in before)
    assert model.loss(ids, ids + 1).item() < loss.item()


# ==== Recognising an era ====


def test_an_era_is_recognised_by_its_tensors(case: Case) -> None:
    assert era_of(case.shapes) is case.config.traits


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("lambdas", {"x0_lambdas": None}, "'lambdas': x0_lambdas missing."),
        ("modern", {"smear_lambda": None}, "'modern': smear_lambda missing."),
        ("classic", {"transformer.h.0.attn.ve_gate.weight": (2, 12)}, "channels unexpected"),
        (
            "gates_32",
            {f"transformer.h.{i}.attn.ve_gate.weight": (2, 16) for i in (1, 3)},
            "'gates_12': ve_gate of 12 channels missing, ve_gate of 16 channels unexpected.",
        ),
        (
            "gates_32",
            {"bigram_embed.embed.weight": (485, 64), "bigram_lambdas": (4,)},
            "'gates_32': bigram_embed unexpected, bigram_lambdas unexpected.",
        ),
        ("values", {f"value_embeds.{i}.weight": None for i in range(4)}, "value_embeds missing."),
    ],
)
def test_unknown_tensors_are_named_in_the_error(
    name: str, changed: dict[str, tuple[int, ...] | None], message: str
) -> None:
    both = Case(name).shapes | changed
    with pytest.raises(MlxchatError) as raised:
        era_of({name: shape for name, shape in both.items() if shape is not None})
    assert message in raised.value.problem
    assert "between October 2025 and July 2026" in raised.value.remedy


def test_tensors_that_all_eras_have_do_not_decide_the_era() -> None:
    assert era_of({}) is era_of({"transformer.wpe.weight": (8, 8)}) is ERAS["classic"]


# ==== Config ====


def test_the_era_defaults_to_the_one_named_like_the_architecture() -> None:
    for arch in ("classic", "modern"):
        config = GPTConfig(arch=arch)
        assert (config.era, config.softcap) == (arch, 15.0)
        assert GPTConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"era": "lambdas"}, "the era lambdas is trained as modern"),
        ({"arch": "modern", "era": "classic"}, "the era classic is trained as classic"),
        ({"arch": "ancient"}, "classic' or 'modern"),
        ({"arch": "modern", "era": "gates"}, "'gates_32'"),
        ({"softcap": 0}, "greater than 0"),
        ({"softcap": 100}, "less than or equal to 64"),
        (
            {"arch": "modern", "era": "gates_32", "n_embd": 24},
            "n_embd 24 is less than the 32 channels that the value embeddings' gate sees",
        ),
    ],
)
def test_settings_that_contradict_the_era_are_rejected(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)


# ==== Files ====


@pytest.mark.parametrize("quantization", [None, Quantization(group_size=32)], ids=["whole", "4bit"])
@pytest.mark.parametrize("era", ERAS)
def test_a_saved_model_is_read_back_unchanged(
    era: str, quantization: Quantization | None, tmp_path: Path
) -> None:
    model, ids = small(era), mx.arange(30)[None]
    if quantization:
        quantize_layers(model, quantization.formats(model.config))
    layout.write_model(tmp_path, model, BYTES, False)
    copy = layout.read_model(tmp_path, mx.float32).model
    assert copy.config == model.config
    assert mx.array_equal(copy(ids), model(ids))
    cache = KVCache(copy.config)
    pieces = [copy(ids[:, i : i + 1], cache) for i in range(30)]
    assert largest_difference(mx.concatenate(pieces, axis=1), model(ids)) < 1e-4


def test_a_softcap_of_its_own_is_saved_and_read(tmp_path: Path) -> None:
    config = small("gates_32").config.model_copy(update={"softcap": 20.0})
    layout.write_model(tmp_path, with_drawn(GPT(config)), BYTES, False)
    assert layout.read_config(tmp_path) == config


@pytest.mark.parametrize("era", ERAS)
def test_all_matrices_but_the_gates_can_be_quantized(era: str) -> None:
    model = small(era)
    matrices = {n for n, w in model.named_parameters().items() if w.ndim == 2 and "gate" not in n}
    assert {f"{layer.name}.weight" for layer in quantizable(model.config)} == matrices


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_config_files_from_before_eras_are_read(arch: str, tmp_path: Path) -> None:
    fields = {
        "model_type": {"classic": "nanochat", "modern": "nanochat_modern"}[arch],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "max_position_embeddings": 320,
        "final_logit_softcapping": 15.0,
    }
    if arch == "modern":
        fields |= {"window_pattern": "SSSL", "vocab_multiple": 64}
    (tmp_path / layout.CONFIG).write_text(json.dumps(fields))
    own = {"window_pattern": "SSSL", "vocab_multiple": 64} if arch == "modern" else {}
    assert layout.read_config(tmp_path) == GPTConfig(
        arch=arch, sequence_len=320, vocab_size=97, n_layer=4, n_head=4, n_kv_head=2, n_embd=64,
        **own,
    )  # fmt: skip


@pytest.mark.parametrize("field", ["window_pattern", "vocab_multiple", "final_logit_softcapping"])
def test_later_eras_need_every_field(field: str, tmp_path: Path) -> None:
    layout.write_model(tmp_path, small("gates_12"), BYTES, False)
    path = tmp_path / layout.CONFIG
    fields = json.loads(path.read_text())
    del fields[field]
    path.write_text(json.dumps(fields))
    with pytest.raises(MlxchatError, match=field):
        layout.read_config(tmp_path)
