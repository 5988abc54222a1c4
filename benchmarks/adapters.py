"""Fine-tuning a whole model beside training adapters on it: LoRA, DoRA, QLoRA with 4 bits.

    python benchmarks/adapters.py quickstart HOME [--cases lora qlora] [--learning-rate 0.003]
    python benchmarks/adapters.py synthetic --depth 20 --device-batch-size 4  # on a GPU

The first needs a home in which `mlxchat quickstart` was run, copies its base model, and teaches it
the built-in corpus's conversations together with an identity, each time in another way: how many
held-out questions are answered word for word, to how many questions for its name it says it, the
loss on held-out conversations, time, bytes of the optimizer, peak memory and size on disk; for
QLoRA also the loss of one model made of both, dequantized and quantized again.

The second makes a random model of that depth and takes a few steps on random tokens: peak memory
and tokens a second, full fine-tuning beside QLoRA.

Each case is a process of its own. Takes ten minutes on two cores.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import finetuning
import numpy as np

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout, store, trainer
from mlxchat.checkpoint.adapters import ADAPTER_FILE
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli.quickstart import BASE_CONFIG, TUNED_CONFIG
from mlxchat.config.lora import LoraTraining
from mlxchat.config.sft import SftConfig
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import add_adapter, fuse_adapter
from mlxchat.model.quantization import Quantization
from mlxchat.model.size import parameters
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.memory import AdapterPlan, BatchPlan, training_bytes
from mlxchat.quantize import evaluate, quantize
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated
from mlxchat.train.measure import resources
from mlxchat.train.sft import FineTuning, chat_documents, run_fine_tuning
from mlxchat.train.step import StepParts, compile_step

BITS = Quantization(bits=4)
CASES: Mapping[str, dict[str, Any] | None] = {  # settings of the adapter; None: the whole model
    "full": None,
    "lora": {"rank": 8},
    "dora": {"rank": 8, "dora": True},
    "qlora": {"rank": 8},
}
EVALUATED = 64 * 1024  # tokens of held-out conversations
STEPS = 8  # of a synthetic run


def main() -> None:
    """Measure and print; or be the process of one case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["quickstart", "synthetic"])
    parser.add_argument("home", nargs="?", type=Path, help="a home with quickstart's base model")
    parser.add_argument("--cases", nargs="+", choices=list(CASES))
    parser.add_argument("--learning-rate", type=float, nargs="+", help="of the adapters")
    parser.add_argument("--warmup-ratio", type=float, help="of the adapters' learning rate")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--max-seq-len", type=int, default=2048)
    parser.add_argument("--device-batch-size", type=int, default=4)
    parser.add_argument("--grad-checkpoint", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        case = argparse.Namespace(**json.loads(given.case))
        print(json.dumps((of_quickstart if case.what == "quickstart" else of_random_model)(case)))
        return
    for case in given.cases or (list(CASES) if given.what == "quickstart" else ["full", "qlora"]):
        for rate in [None] if CASES[case] is None else given.learning_rate or [None]:
            one = {**vars(given), "home": str(given.home), "case": case, "learning_rate": rate}
            command = [sys.executable, __file__, given.what, "--case", json.dumps(one)]
            subprocess.run(command, check=True)


# ==== Quickstart's base model ====================================================================


def of_quickstart(given: argparse.Namespace) -> dict[str, Any]:
    """What one way to fine-tune quickstart's base model brings and takes."""
    case, lora = given.case, CASES[given.case]
    if lora is not None and given.learning_rate:
        lora = {**lora, "learning_rate": given.learning_rate}
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        shutil.copytree(Home(Path(given.home)).runs / BASE_CONFIG.tag, home.runs / BASE_CONFIG.tag)
        config = TUNED_CONFIG.model_copy(
            update={
                "source": quantized_base(home) if case == "qlora" else BASE_CONFIG.tag,
                "identity": f"name={finetuning.NAME}, made by=Grace",
                "lora": None if lora is None else LoraTraining.model_validate(lora),
                **({"warmup_ratio": given.warmup_ratio} if lora and given.warmup_ratio else {}),
                "model_tag": case,
            }
        )
        mx.reset_peak_memory()
        began = time.perf_counter()
        for _ in run_fine_tuning(config, home, lambda _: None):
            pass
        seconds, peak = time.perf_counter() - began, mx.get_peak_memory()
        step = catalog.find(home.stages, case, None)
        found = {
            "case": case,
            "adapter": lora,
            "seconds": round(seconds, 1),
            "peak_bytes": peak,
            "optimizer_bytes": (step / trainer.OPTIMIZER).stat().st_size,
            "step_bytes": store.size(step),
            "weights_bytes": sum(path.stat().st_size for path in weight_files(step)),
            "loss_bits_per_byte": loss(config, layout.read_model(step, mx.float32)),
        }
        if case == "qlora":
            for name, dequantize in (("dequantized", True), ("quantized_again", False)):
                saved = layout.read_model(step, mx.float32)
                fuse_adapter(saved.model, dequantize)
                found[f"fused_{name}_bits_per_byte"] = loss(config, saved)
        tuned = finetuning.load(home, case)
        found["right"] = finetuning.right(tuned, given.questions)
        found["of_questions"] = given.questions
        found["says_its_name"] = finetuning.says_its_name(tuned)
        found["asked_for_its_name"] = len(finetuning.HELD_OUT_QUESTIONS)
        return found


def quantized_base(home: Home) -> str:
    """Quantize the base model into a run of its own, as `mlxchat quantize` does."""
    source = catalog.find(home.stages, BASE_CONFIG.tag, None)
    run = home.runs / f"{BASE_CONFIG.tag}-{BITS.name}"
    saved = layout.read_model(source, runtime.machine().compute_dtype)
    quantize(saved.model, BITS.formats(saved.model.config))
    store.save(
        run, 0, lambda folder: layout.write_model(folder, saved.model, saved.tokenizer, False)
    )
    return run.name


def weight_files(step: Path) -> list[Path]:
    """The files of a step that hold what was trained."""
    return [path for path in (step / layout.MODEL, step / ADAPTER_FILE) if path.exists()]


def loss(config: SftConfig, saved: SavedModel) -> float:
    """Bits per byte on the held-out conversations."""
    documents: Documents = chat_documents(config, FineTuning.prepared)
    *_, last = evaluate(saved, documents, EVALUATED)
    assert isinstance(last, Evaluated)
    return round(last.bits_per_byte, 5)


# ==== A random model =============================================================================


def of_random_model(given: argparse.Namespace) -> dict[str, Any]:
    """Memory and speed of a few steps."""
    case = given.case
    config = GPTConfig.from_depth(given.depth, given.vocab_size, given.max_seq_len)
    plan = BatchPlan(
        device_batch_size=given.device_batch_size,
        accumulation=1,
        chunk_rows=resources().chunk_rows,
        grad_checkpoint=given.grad_checkpoint,
    )
    runtime.bound_buffer_cache()
    model = GPT.new(config)
    adapter = None
    if (settings := CASES[case]) is not None:
        lora = LoraTraining.model_validate(settings).shape.with_head()
        if case == "qlora":
            quantize(model, BITS.formats(config))
        frozen = sum(array.nbytes for array in model.named_parameters().values())
        add_adapter(model, lora)
        model.cast_frozen()
        own = sum(array.size for array in model.named_trainable().values())
        adapter = AdapterPlan(
            parameters=own,
            frozen=frozen,
            layers=config.n_layer,
            dequantizes=case == "qlora",
            dora=lora.dora,
        )
    mx.clear_cache()
    mx.reset_peak_memory()
    estimate = training_bytes(config, plan, resources(), adapter)["peak"]
    runtime.hold_memory(resources().memory, estimate, None)
    seconds = steps(model, plan)
    return {
        "case": case,
        "parameters": sum(parameters(config).values()),
        "trained": sum(array.size for array in model.named_trainable().values()),
        "rows": plan.device_batch_size,
        "context": config.sequence_len,
        "peak_bytes": mx.get_peak_memory(),
        "estimated_bytes": estimate,
        "tokens_per_second": round(plan.device_batch_size * config.sequence_len / seconds),
        "device": runtime.machine().device,
    }


def steps(model: GPT, plan: BatchPlan) -> float:
    """Seconds of a step, the median of `STEPS` after the first two."""
    shape = plan.device_batch_size, model.config.sequence_len
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=shape, dtype=np.int32)
    optimizer = MuonAdamW(model)
    batches = repeat(Batch(ids, np.roll(ids, -1, axis=1), LoaderState()))
    parts = StepParts(model, optimizer, batches, lambda _: optimizer.rates, plan, grad_clip=0.0)
    launch, taken = compile_step(parts), []
    for number in range(1, STEPS + 3):
        began = time.perf_counter()
        pending = launch(number)
        mx.eval(pending.metrics, model.named_trainable(), optimizer.state)
        taken.append(time.perf_counter() - began)
    return median(taken[2:])


if __name__ == "__main__":
    main()
