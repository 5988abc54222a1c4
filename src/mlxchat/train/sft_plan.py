"""The plan of training on conversations, derived from them and the initial model."""

from itertools import islice
from typing import NamedTuple

from mlxchat.config.sft import ConversationConfig
from mlxchat.counts import counted
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.documents import BATCH, Cursor
from mlxchat.data.packing import unmask
from mlxchat.errors import DataError
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.plan.division import fit
from mlxchat.plan.memory import AdapterPlan, Resources
from mlxchat.plan.plan import Plan, adapter_rates, evaluation_rows, step_rows
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Progressed, Report
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train.base import Base

LEAST_STEPS = 100  # over which the conversations are spread, if there are that many rows


def conversation_plan(
    config: ConversationConfig,
    base: Base,
    epoch_rows: int,
    resources: Resources,
    adapter: AdapterPlan | None = None,
) -> Plan:
    """Derive the numbers that the settings leave open.

    Args:
        config: the settings.
        base: the model to train further.
        epoch_rows: rows that the conversations of an epoch take.
        resources: the means of the machine.
        adapter: the adapter that alone is trained; None if the whole model is.

    Raises:
        ConfigError: the batch sizes do not divide.
        MemoryLimitError: it does not fit into the memory.
    """
    model, context = base.model, base.model.sequence_len
    wanted = (config.epochs or 1) * epoch_rows
    if config.total_batch_size:
        rows = step_rows(config, context, config.total_batch_size)
    else:
        rows = _batch(base.tokens_per_step // context, wanted, config.device_batch_size or 1)
    steps = config.num_iterations or -(-wanted // rows)
    batch = fit(config, model, rows, resources, adapter=adapter)
    total = rows * context
    share = config.init_lr_frac
    return Plan(
        **dict(batch),
        model=model,
        parameters=sum(parameters(model).values()),
        flops_per_token=flops_per_token(model, frozen=adapter is not None),
        target_tokens=wanted * context,
        num_iterations=steps,
        tokens_per_step=total,
        learning_rates=adapter_rates(config.lora)
        if config.lora
        else {group: share * rate for group, rate in base.learning_rates.items()},
        weight_decay=0.0,
        grad_clip=config.grad_clip,
        dropout=config.lora.dropout if config.lora else 0.0,
        warmup_steps=round(config.warmup_ratio * steps),
        warmdown_ratio=config.warmdown_ratio,
        final_lr_frac=config.final_lr_frac,
        eval_rows=evaluation_rows(config, context, total),
        adapter=adapter,
    )


def _batch(rows: int, wanted: int, multiple: int) -> int:
    """Return the rows of a step: the base's, halved until ``wanted`` rows make `LEAST_STEPS`."""
    while rows > multiple and rows * LEAST_STEPS > wanted:
        rows //= 2
    return max(multiple, rows - rows % multiple)


class Survey(NamedTuple):
    """The size of an epoch of conversations, before and after packing."""

    conversations: int
    rows: int  # after packing, of ``context`` tokens
    context: int
    tokens: int
    learned: int  # of those, the ones that have a loss
    truncated: int  # conversations longer than a row
    unanswered: int  # conversations skipped, as no answer begins within a row

    def summary(self) -> str:
        """Return the survey in a sentence."""
        rest = f"; {self.truncated:,} are longer and were truncated" if self.truncated else ""
        if self.unanswered:
            rest += f"; {self.unanswered:,} have no answer within the context and were skipped"
        full = self.tokens / (self.rows * (self.context + 1))
        return (
            f"{counted(self.conversations, 'conversations')} per epoch: "
            f"{counted(self.tokens, 'tokens')}, {self.learned:,} of them learned, in "
            f"{counted(self.rows, 'rows')} of {self.context:,} "
            f"({full:.0%} full){rest}."
        )


def survey(
    documents: ChatDocuments, tokenizer: Tokenizer, context: int, report: Report, clock: Clock
) -> Survey:
    """Prepare the first epoch as training will.

    Args:
        documents: the conversations.
        tokenizer: renders them.
        context: tokens in a row.
        report: called with the progress.
        clock: seconds since the epoch.

    Raises:
        DataError: no conversation has an answer within the context.
    """
    preparation, capacity = documents.preparation, context + 1
    lengths, read = list[int](), 0
    total = documents.epoch_size
    epoch = islice(documents.training(Cursor()), total)

    def refill() -> list[list[int]] | None:
        nonlocal read
        following = next(epoch, None)
        if following is None:
            return None
        encoded = preparation.encode(tokenizer, following[0], capacity)
        lengths.extend(map(len, encoded))
        read += 1
        if read % BATCH == 0 or read == total:
            report(Progressed(clock(), "reading", read, total, "conversations"))
        return encoded

    packing = preparation.pack(tokenizer, capacity, refill, ())
    rows = learned = 0
    while (row := packing.row()) is not None:
        rows += 1
        _, targets = unmask(row[1:])
        learned += int((targets >= 0).sum())
    if not lengths:
        raise DataError(
            f"No conversation has an answer within the model's context of {context:,} tokens.",
            "Use shorter conversations, or a model with a longer context.",
        )
    longest = capacity if preparation.cuts else max(lengths)
    return Survey(
        conversations=len(lengths),
        rows=rows,
        context=context,
        tokens=sum(min(length, longest) for length in lengths),
        learned=learned,
        truncated=sum(length > longest for length in lengths),
        unanswered=read - len(lengths),
    )
