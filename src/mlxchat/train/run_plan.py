"""What a run does, as numbers, whatever is trained. Pure: no arrays, no files."""

from pydantic import BaseModel, ConfigDict

from mlxchat.config.run import RunConfig
from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.train.fitting import Capacity, fit, memory_limit


class Costs(BaseModel):
    """Seconds that a run with a time budget has used of it, and that each thing takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spent: float = 0.0
    step: float
    evaluation: float = 0.0
    sample: float = 0.0
    save: float = 0.0


class Plan(BaseModel):
    """What a run does, derived once and kept with its checkpoints.

    That of a run with a time budget is corrected as it goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: GPTConfig
    parameters: int
    flops_per_token: int
    target_tokens: int  # that the data ratio or the epochs ask for
    num_iterations: int
    device_batch_size: int
    accumulation: int  # micro-batches in a step
    tokens_per_step: int
    learning_rates: dict[str, float]  # by group
    weight_decay: float  # classic: of embedding and head; modern: of the matrices
    grad_clip: float
    warmup_steps: int
    warmdown_ratio: float
    final_lr_frac: float
    eval_rows: int  # of an evaluation, at most
    grad_checkpoint: bool = False  # compute each block's activations again in the backward pass
    loss_rows: int = 128  # positions in a chunk of the loss, at least
    costs: Costs | None = None  # None: there is no time budget

    @property
    def rows(self) -> int:
        """Of a step."""
        return self.device_batch_size * self.accumulation

    def memory(self, capacity: Capacity) -> dict[str, int]:
        """Bytes that training takes by component, and their peak, roughly."""
        return capacity.training_bytes(
            self.model,
            self.device_batch_size,
            self.accumulation,
            self.loss_rows,
            self.grad_checkpoint,
        )

    @property
    def tokens(self) -> int:
        """That the run trains on."""
        return self.num_iterations * self.tokens_per_step

    def summary(self) -> str:
        """The plan in a line."""
        rates = ", ".join(f"{rate:.3g} {group}" for group, rate in self.learning_rates.items())
        rows = "1 row" if self.device_batch_size == 1 else f"{self.device_batch_size} rows"
        checkpointing = ", gradient checkpointing" if self.grad_checkpoint else ""
        return (
            f"{self.model.arch}, {self.parameters:,} parameters in {self.model.n_layer} layers of "
            f"width {self.model.n_embd}, vocabulary {self.model.vocab_size:,}; "
            f"{self.num_iterations:,} steps of {self.tokens_per_step:,} tokens "
            f"({rows} of {self.model.sequence_len:,}, "
            f"{self.accumulation} times{checkpointing}); learning rates {rates}; "
            f"weight decay {self.weight_decay:.3g}."
        )


def refitted(made: Plan, config: RunConfig, capacity: Capacity) -> Plan:
    """The plan of a saved run: as it is where its peak fits still, and batch and checkpointing are
    as asked, so that it goes on bit for bit; else cut up anew.

    Raises:
        MlxchatError: as of `fit`; or the rows asked for do not divide a step's.
    """
    step_rows(config, made.model.sequence_len, made.tokens_per_step)
    asked = config.grad_checkpoint in ("auto", "on" if made.grad_checkpoint else "off")
    asked = asked and config.device_batch_size in (None, made.device_batch_size)
    limit = memory_limit(config, made.model, made.rows, capacity)
    if asked and made.memory(capacity)["peak"] <= limit:
        return made
    cut = fit(config, made.model, made.rows, capacity, [])
    changed = {
        "device_batch_size": cut.device_batch,
        "accumulation": cut.accumulation,
        "loss_rows": cut.loss_rows,
        "grad_checkpoint": cut.checkpoint,
    }
    return made.model_copy(update=changed)


def evaluation_rows(config: RunConfig, context: int, tokens_per_step: int) -> int:
    """Rows of an evaluation at most, one at least; ``context`` is the tokens of a row."""
    tokens = config.eval_tokens or config.evaluation_steps * tokens_per_step
    return max(1, tokens // context)


def step_rows(config: RunConfig, context: int, total: int) -> int:
    """Rows of ``context`` tokens in a step of ``total`` tokens.

    Raises:
        MlxchatError: they are not whole, or not a multiple of those computed at once.
    """
    device_batch = config.device_batch_size or 1
    rows, left = divmod(total, context)
    if not left and rows % device_batch == 0:
        return rows
    unit = f"a row's {context:,} tokens"
    if device_batch > 1:
        unit = f"{device_batch} rows of {context:,} tokens ({device_batch * context:,})"
    problem = f"A total batch of {total:,} tokens is not a multiple of {unit}."
    if left:
        below, above = max(1, rows // device_batch), rows // device_batch + 1
        totals = sorted({n * device_batch * context for n in (below, above)})
        raise MlxchatError(
            problem, f"Use --total-batch-size {' or '.join(str(n) for n in totals)}."
        )
    divisors = [str(n) for n in range(1, min(rows, 64) + 1) if rows % n == 0]
    raise MlxchatError(problem, f"Use --device-batch-size {', '.join(divisors)}.")
