"""mlx-lm and PEFT compute with our adapters what we do, and we with theirs.

Skipped where they are not installed: mlx-lm is of the extra ``interop``, PEFT of none.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapted import adapter_run, base_run, logits
from support.extras import extra
from support.models import network

from mlxchat.checkpoint import history, layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import generate
from mlxchat.engine.sampling import make_sampler
from mlxchat.home import Home
from mlxchat.interop import exporters
from mlxchat.interop.importers.adapter import import_adapter, open_adapter
from mlxchat.model.adapter import ADAPTED, HEAD, LoraConfig
from mlxchat.model.quantization import Quantization
from mlxchat.quantize import quantize
from mlxchat.runtime import mx

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs

PROMPT = (256, *range(40))
NEW = 50
KINDS = {
    "lora": LoraConfig(rank=4, scale=2.0),
    "last layer": LoraConfig(rank=4, scale=2.0, layers=1, modules=("attn.c_q", "mlp.c_fc")),
    "with head": LoraConfig(rank=3, scale=1.0, modules=(*ADAPTED, HEAD)),
    "dora": LoraConfig(rank=4, scale=2.0, dora=True),
}


@pytest.fixture(params=list(KINDS))
def lora(request: pytest.FixtureRequest) -> LoraConfig:
    return KINDS[request.param]


def greedy(saved: SavedModel) -> list[int]:
    """The likeliest tokens after the prompt."""
    tokens = generate(
        saved.model, PROMPT, KVCache(saved.model.config), make_sampler(Sampling(temperature=0)),
        key=mx.random.key(0), stop=frozenset(), max_tokens=NEW,
    )  # fmt: skip
    return list(tokens)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("exported", [False, True])
def test_mlx_lm_writes_the_same_with_our_adapter(
    exported: bool, bits: int | None, lora: LoraConfig, tmp_path: Path
) -> None:
    """On the step's own folder, and on an export of the model."""
    load, step = extra("mlx_lm.utils").load, extra("mlx_lm.generate").generate_step
    saved = network(128)
    if bits:
        quantize(saved.model, Quantization(bits=bits, group_size=32).formats(saved.model.config))
    base = base_run(Home(tmp_path), saved)
    folder = adapter_run(Home(tmp_path), base, "cow", lora)
    if exported:
        whole, past = layout.read_model(base, mx.float32), history.read_before(base)
        base = exporters.write("mlx-lm", tmp_path / "out", whole, past, mx.float32).folder
    theirs, _ = load(str(base), adapter_path=str(folder))
    written = [token for token, _ in step(mx.array(PROMPT), theirs, max_tokens=NEW)]
    ours, alone = layout.read_model(folder, mx.float32), layout.read_model(base, mx.float32)
    assert written == greedy(ours)
    assert written != greedy(alone)


def test_peft_computes_the_same_with_our_adapter(lora: LoraConfig, tmp_path: Path) -> None:
    peft, torch, transformers = extra("peft"), extra("torch"), extra("transformers")
    place = Home(tmp_path)
    base = base_run(place, network(128))
    folder = adapter_run(place, base, "cow", lora)
    for program, source in (("transformers", base), ("peft", folder)):
        saved, past = layout.read_model(source, mx.float32), history.read_before(source)
        exporters.write(program, tmp_path / program, saved, past, mx.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "transformers", dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits.numpy()
    ours = np.array(logits(layout.read_model(folder, mx.float32).model, PROMPT))
    assert np.abs(theirs - ours).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj", "fc1", "lm_head"], "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["q_proj", "fc2"], "alpha_pattern": {"fc2": 3}},
        {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [0]},
        {"target_modules": ["q_proj", "fc2"], "use_dora": True},
    ],
)
def test_we_compute_the_same_with_peft_s_adapter(settings: Any, tmp_path: Path) -> None:
    peft, torch, transformers = extra("peft"), extra("torch"), extra("transformers")
    base = base_run(Home(tmp_path), network(128))
    saved, past = layout.read_model(base, mx.float32), history.read_before(base)
    exporters.write("transformers", tmp_path / "out", saved, past, mx.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    chosen = peft.LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=8, **settings)
    model = peft.get_peft_model(model, chosen).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
            if "magnitude" in name:
                parameter.mul_(1.3)
        theirs = model(torch.tensor([PROMPT])).logits.numpy()
    model.save_pretrained(tmp_path / "adapter")
    run = tmp_path / "run"
    folder = import_adapter(run, open_adapter(tmp_path / "adapter", base))
    ours = np.array(logits(layout.read_model(folder, mx.float32).model, PROMPT))
    assert np.abs(theirs - ours).max() < 1e-4 * np.abs(ours).max()
    plain = np.array(logits(layout.read_model(base, mx.float32).model, PROMPT))
    assert np.abs(theirs - plain).max() > 1e-2 * np.abs(ours).max()
