"""The plan of fine-tuning: what follows from the pretrained model and the conversations."""

from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from mlxchat.checkpoint import layout
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.documents import Cursor
from mlxchat.data.loader import BUFFER_CONVERSATIONS, answered
from mlxchat.data.packing import BestFit
from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.plan.memory import Capacity, fit
from mlxchat.plan.plan import REFERENCE_BATCH, Plan, evaluation_rows, learning_rates, step_rows
from mlxchat.telemetry.events import Clock, Progressed, Report
from mlxchat.tokenizer.bpe import Tokenizer

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
    unanswered: int  # left out: no answer begins within a row

    def summary(self) -> str:
        """The survey in a line."""
        cut = f"; {self.cut:,} are longer than that, and cut" if self.cut else ""
        if self.unanswered:
            cut += f"; {self.unanswered:,} have no answer within that, and are left out"
        full = self.tokens / (self.rows * (self.context + 1))
        return (
            f"{self.conversations:,} conversations an epoch: {self.tokens:,} tokens, "
            f"{self.learnt:,} of them answers, in {self.rows:,} rows of {self.context:,} "
            f"({full:.0%} full){cut}."
        )


def pretrained(folder: Path) -> Base:
    """What a model's directory says of its pretraining; nanochat's numbers where it says nothing.

    As in nanochat, the learning rates of a modern model are those before they were scaled by the
    batch.

    Raises:
        MlxchatError: it is no model, or a quantized one.
    """
    model = layout.read_config(folder)
    if layout.is_quantized(folder):
        raise MlxchatError(
            f"The model in {folder} is quantized: it cannot be trained.",
            "Name the model that it was made of with --source, and quantize what comes of it.",
        )
    tokens, config = REFERENCE_BATCH, PretrainConfig(arch=model.arch)
    if (folder / layout.TRAINER).exists():
        trainer = layout.read_trainer(folder)
        with suppress(ValidationError):  # of a version whose settings or plans were others
            plan = Plan.model_validate(trainer.plan)
            tokens = plan.tokens_per_step
            if trainer.stage == layout.FINE_TUNING:
                share = trainer.settings["init_lr_frac"]
                rates = {group: rate / share for group, rate in plan.learning_rates.items()}
                return Base(model, rates, tokens)
            config = PretrainConfig.model_validate(trainer.settings)
    rates = learning_rates(config.recipe, config.matrix_lr, model, REFERENCE_BATCH)
    return Base(model, rates, tokens)


def survey(
    documents: ChatDocuments, tokenizer: Tokenizer, context: int, report: Report, clock: Clock
) -> Survey:
    """Render and pack the first epoch, as training will.

    Args:
        context: tokens of a row.
        report: is told how far it is.

    Raises:
        MlxchatError: no conversation has an answer within the context.
    """
    capacity, lengths, read = context + 1, list[int](), 0
    batches = (batch for batch, _ in documents.training(Cursor()))
    epoch = islice(chain.from_iterable(batches), documents.epoch_size)

    def refill() -> list[list[int]] | None:
        nonlocal read
        batch = list(islice(epoch, BUFFER_CONVERSATIONS))
        encoded = answered(tokenizer, batch, capacity)
        lengths.extend(map(len, encoded))
        read += len(batch)
        total = documents.epoch_size
        report(Progressed(clock(), "reading", read, total, "conversations"))
        return encoded if batch else None

    packing = BestFit(capacity, BUFFER_CONVERSATIONS, refill, padding=~tokenizer.bos)
    rows = learnt = 0
    while (row := packing.row()) is not None:
        rows += 1
        learnt += int((row[1:] >= 0).sum())
    if not lengths:
        raise MlxchatError(
            f"No conversation has an answer within the model's context of {context:,} tokens.",
            "Use shorter ones, or a model of a longer context.",
        )
    kept = sum(min(length, capacity) for length in lengths)
    cut = sum(length > capacity for length in lengths)
    return Survey(len(lengths), rows, context, kept, learnt, cut, read - len(lengths))


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
    wanted = (config.epochs or 1) * epoch_rows
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
        eval_rows=evaluation_rows(config, context, total),
        grad_checkpoint=cut.checkpoint,
        loss_rows=cut.loss_rows,
    )


def _batch(rows: int, wanted: int, multiple: int) -> int:
    """Rows of a step: pretraining's, halved until the wanted ones make `LEAST_STEPS`."""
    while rows > multiple and rows * LEAST_STEPS > wanted:
        rows //= 2
    return max(multiple, rows - rows % multiple)
