"""The plan of fine-tuning: what follows from the pretrained model and the conversations."""

from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from mlxchat.ckpt import layout
from mlxchat.data.chats.documents import ChatDocuments
from mlxchat.data.documents import Cursor
from mlxchat.data.loader import BUFFER_CONVERSATIONS, learnt_only
from mlxchat.data.packing import BestFit
from mlxchat.data.tokenizer import Tokenizer
from mlxchat.errors import MlxchatError
from mlxchat.model.arithmetic import flops_per_token, parameters
from mlxchat.model.config import GPTConfig
from mlxchat.telemetry import Progressed
from mlxchat.train.fitting import Capacity, fit
from mlxchat.train.inputs import Clock, Report
from mlxchat.train.plan import REFERENCE_BATCH, learning_rates
from mlxchat.train.recipes import RECIPES
from mlxchat.train.run_plan import Plan, evaluation_batches, step_rows
from mlxchat.train.settings import PretrainConfig
from mlxchat.train.sft_settings import SftConfig

LEAST_STEPS = 100  # that the conversations are spread over, where there are so many rows


class Base(NamedTuple):
    """What fine-tuning takes over from pretraining."""

    model: GPTConfig
    learning_rates: dict[str, float]  # at their highest, by group
    tokens_per_step: int


class Survey(NamedTuple):
    """What the conversations of an epoch come to."""

    conversations: int
    rows: int  # of the context length
    context: int
    tokens: int
    learnt: int  # of those, that the assistant says
    cut: int  # conversations longer than a row

    def summary(self) -> str:
        """The survey in a line."""
        cut = f"; {self.cut:,} are longer than that, and cut" if self.cut else ""
        return (
            f"{self.conversations:,} conversations an epoch: {self.tokens:,} tokens, "
            f"{self.learnt:,} of them answers, in {self.rows:,} rows of {self.context:,} "
            f"({self.tokens / (self.rows * self.context):.0%} full){cut}."
        )


def pretrained(folder: Path) -> Base:
    """What a model's directory says of its pretraining; nanochat's numbers where it says nothing.

    Raises:
        MlxchatError: it is no model, or a quantized one.
    """
    model = layout.read_config(folder)
    if layout.is_quantized(folder):
        raise MlxchatError(
            f"The model in {folder} is quantized: it cannot be trained.",
            "Fine-tune the model that it was made of, and quantize that.",
        )
    if (folder / layout.TRAINER).exists():
        try:
            plan = Plan.model_validate(layout.read_trainer(folder).plan)
            return Base(model, plan.learning_rates, plan.tokens_per_step)
        except ValidationError:
            pass  # of a version whose plans were others
    recipe = RECIPES[model.arch]
    matrix_lr = PretrainConfig().matrix_lr
    rates = learning_rates(recipe, matrix_lr, model, REFERENCE_BATCH)
    return Base(model, rates, REFERENCE_BATCH)


def survey(
    documents: ChatDocuments, tokenizer: Tokenizer, context: int, report: Report, clock: Clock
) -> Survey:
    """Render and pack the first epoch, as training will.

    Args:
        context: tokens of a row.
        report: is told how far it is.
    """
    capacity, lengths = context + 1, list[int]()
    read = (documents for documents, _ in documents.training(Cursor()))
    epoch = islice(chain.from_iterable(read), documents.epoch_size)

    def refill() -> list[list[int]] | None:
        batch = list(islice(epoch, BUFFER_CONVERSATIONS))
        encoded = learnt_only(tokenizer, batch)
        lengths.extend(map(len, encoded))
        done, total = len(lengths), documents.epoch_size
        report(Progressed(clock(), "reading conversations", done, total, "conversations"))
        return encoded or None

    packing = BestFit(capacity, BUFFER_CONVERSATIONS, refill, padding=~tokenizer.bos)
    rows = learnt = 0
    while (row := packing.row()) is not None:
        rows += 1
        learnt += int((row[1:] >= 0).sum())
    kept = sum(min(length, capacity) for length in lengths)
    cut = sum(length > capacity for length in lengths)
    return Survey(len(lengths), rows, context, kept, learnt, cut)


def sft_plan(config: SftConfig, base: Base, epoch_rows: int, capacity: Capacity) -> Plan:
    """Derive what the settings leave open.

    Args:
        base: what is fine-tuned.
        epoch_rows: that the conversations of an epoch take.
        capacity: of the machine, which training fits into.

    Raises:
        MlxchatError: the batch sizes do not divide, or there is not the memory.
    """
    model, context = base.model, base.model.sequence_len
    wanted = config.epochs * epoch_rows
    if config.total_batch_size:
        rows = step_rows(config, context, config.total_batch_size)
    else:
        rows = _batch(base.tokens_per_step // context, wanted, config.device_batch_size or 1)
    steps = config.num_iterations or -(-wanted // rows)
    cut = fit(config, model, rows, capacity, [])
    total = rows * context
    return Plan(
        model=model,
        parameters=sum(parameters(model).values()),
        flops_per_token=flops_per_token(model),
        target_tokens=wanted * context,
        num_iterations=steps,
        device_batch_size=cut.device_batch,
        accumulation=cut.accumulation,
        tokens_per_step=total,
        learning_rates={
            group: config.init_lr_frac * rate for group, rate in base.learning_rates.items()
        },
        weight_decay=0.0,
        grad_clip=config.grad_clip,
        warmup_steps=round(config.warmup_ratio * steps),
        warmdown_ratio=config.warmdown_ratio,
        final_lr_frac=config.final_lr_frac,
        eval_batches=evaluation_batches(config, context, total, cut.device_batch),
        grad_checkpoint=cut.checkpoint,
        loss_rows=cut.loss_rows,
    )


def _batch(rows: int, wanted: int, multiple: int) -> int:
    """Rows of a step: pretraining's, halved until the wanted ones make `LEAST_STEPS`."""
    while rows > multiple and rows * LEAST_STEPS > wanted:
        rows //= 2
    return max(multiple, rows - rows % multiple)
