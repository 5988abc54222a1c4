"""Whether mid-training pays: fine-tuning alone, and after mid-training, in the same steps.

    python benchmarks/midtraining.py [--steps 20 40 80] [--shares 0 0.5 0.75] [--seeds 3]

Begins with the run ``quickstart`` in MLXCHAT_HOME (`mlxchat quickstart` makes it), which stays as
it is. Each line is a run or two of so many steps together, all of one size, on the conversations of
the built-in corpus: how many of the steps were mid-training, how many of 200 held-out questions the
model then answers word for word, and its loss on the answers of held-out conversations. Takes a
quarter of an hour on two cores.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli.quickstart import BASE_CONFIG, TUNED_CONFIG
from mlxchat.config.mid import MidConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.sources import parse
from mlxchat.evaluate.answers import write_answers
from mlxchat.evaluate.loss import LONGEST_REPLY, bits_per_byte, builtin_questions, lay_out
from mlxchat.home import Home
from mlxchat.telemetry.events import Evaluated
from mlxchat.train.mid import run_mid_training
from mlxchat.train.sft import run_fine_tuning

AT_ONCE = 16  # questions
SHARED = ("data", "device_batch_size", "total_batch_size", "eval_every", "sample_every")


def train(home: Home, steps: int, share: float, seed: int) -> SavedModel:
    """The model after so many steps, of which a share are mid-training."""
    tag = f"{steps}-{share}-{seed}"
    settings = TUNED_CONFIG.model_dump(include=set(SHARED)) | {"seed": seed, "save_every": 0}
    source, before = BASE_CONFIG.tag, round(share * steps)
    if before:
        config = MidConfig(**settings, source=source, num_iterations=before, model_tag=f"{tag}-mid")
        list(run_mid_training(config, home, lambda _: None))
        source = config.tag
    tuning = SftConfig(**settings, source=source, num_iterations=steps - before, model_tag=tag)
    list(run_fine_tuning(tuning, home, lambda _: None))
    dtype = runtime.machine().compute_dtype
    saved = layout.read_model(catalog.find(home.stages, tag, None), dtype)
    saved.model.prepare_for_inference()
    return saved


def right(saved: SavedModel) -> int:
    """How many held-out questions it answers word for word."""
    outcomes = write_answers(saved, builtin_questions(None), AT_ONCE, LONGEST_REPLY)
    return sum(outcome.right for outcome in outcomes)


def loss(saved: SavedModel) -> float:
    """Its loss on the answers of held-out conversations, in nats a token."""
    sources = [parse(text) for text in TUNED_CONFIG.data or ()]
    held_out = ChatDocuments(sources, seed=TUNED_CONFIG.seed).held_out
    batches = lay_out(held_out, saved.tokenizer, saved.model.config.sequence_len).batches
    *_, last = bits_per_byte(saved.model.losses, batches, len(batches), saved.tokenizer)
    assert isinstance(last, Evaluated)
    return last.loss


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    print("steps  of them mid  seed  right  loss on answers")
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        base = Home.from_environment().runs / BASE_CONFIG.tag
        shutil.copytree(base, home.runs / BASE_CONFIG.tag)
        for seed in range(1, given.seeds + 1):
            for steps in given.steps:
                for share in given.shares:
                    saved = train(home, steps, share, seed)
                    found = f"{right(saved):>5}  {loss(saved):.4f}"
                    print(f"{steps:>5}  {round(share * steps):>11}  {seed:>4}  {found}", flush=True)


if __name__ == "__main__":
    main()
