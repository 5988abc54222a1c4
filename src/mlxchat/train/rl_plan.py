"""The plan of reinforcement learning, derived from the model, the questions and the memory."""

from collections.abc import Sequence
from typing import NamedTuple

from mlxchat.config.recipes import RECIPES
from mlxchat.config.rl import RlConfig
from mlxchat.counts import counted
from mlxchat.data.questions.question import QuestionSource, TaskQuestion
from mlxchat.errors import ConfigError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.optim.schedule import REFERENCE_BATCH, learning_rates
from mlxchat.plan.division import fit
from mlxchat.plan.memory import AdapterPlan, Resources
from mlxchat.plan.plan import DrawingPlan, Plan, adapter_rates, with_drawing, with_rows_of
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Progressed, Report
from mlxchat.tokenizer.bpe import Tokenizer

RL_MOMENTUM = 0.95  # of Muon, throughout
FEWEST_TOKENS = 16  # that an answer must have room for, unless fewer are asked for
MOST_TOGETHER = 1024  # answers drawn at a time
COUNTED_EVERY = 512  # questions, between two events of progress


class QuestionSurvey(NamedTuple):
    """The size of a task's questions.

    Attributes:
        train: how many there are to train on.
        held_out: how many are held out.
        different: how many of these are left where each is counted in one wording only.
        longest: the most tokens of a prompt.
    """

    train: int
    held_out: int
    different: int
    longest: int

    def summary(self, name: str) -> str:
        """Return it in a sentence."""
        held_out = f"{self.held_out:,} held out"
        if self.different < self.held_out:
            held_out += f" ({self.different:,} different ones, some in several wordings)"
        return (
            f"{name}: {counted(self.train, 'questions')} to train on, {held_out}; prompts of up to "
            f"{counted(self.longest, 'tokens')}."
        )


def question_survey(
    source: QuestionSource, tokenizer: Tokenizer, report: Report, clock: Clock
) -> QuestionSurvey:
    """Render all questions; ``report`` gets the progress."""
    total = len(source.train) + len(source.held_out)
    longest = read = 0

    def count(questions: Sequence[TaskQuestion]) -> None:
        nonlocal longest, read
        for question in questions:
            longest = max(longest, len(tokenizer.render_for_completion(question.conversation)))
            read += 1
            if read % COUNTED_EVERY == 0 or read == total:
                report(Progressed(clock(), "reading", read, total, "questions"))

    count(source.train)
    count(source.held_out)
    different = len({question.asked for question in source.held_out})
    return QuestionSurvey(len(source.train), len(source.held_out), different, longest)


def rl_plan(
    config: RlConfig,
    model: GPTConfig,
    found: QuestionSurvey,
    resources: Resources,
    adapter: AdapterPlan | None = None,
) -> Plan:
    """Derive the numbers that the settings leave open.

    Args:
        config: the settings.
        model: the shape of the model to begin with.
        found: the questions.
        resources: the means of the machine.
        adapter: the adapter that alone is trained; None if the whole model is.

    Raises:
        ConfigError: the model's context has no room for answers, or the rows do not divide.
        MemoryLimitError: it does not fit into the memory.
    """
    room = model.sequence_len - found.longest
    if room < min(config.max_tokens, FEWEST_TOKENS):
        raise ConfigError(
            f"The longest question takes {found.longest:,} tokens, which leaves no room for an "
            f"answer in the model's context of {model.sequence_len:,}.",
            "Use shorter questions, or a model with a longer context.",
        )
    if config.device_batch_size and config.rows % config.device_batch_size:
        raise ConfigError(
            f"`device_batch_size={config.device_batch_size}` does not divide the {config.rows:,} "
            "answers of a step.",
            "Use one that does, or leave it out.",
        )
    max_tokens = min(config.max_tokens, room)
    row_tokens = found.longest + max_tokens
    batch = fit(config, with_rows_of(model, row_tokens), config.rows, resources, adapter=adapter)
    wanted = (config.epochs or 1) * found.train
    plan = Plan(
        **dict(batch),
        model=model,
        parameters=sum(parameters(model).values()),
        flops_per_token=flops_per_token(model, frozen=adapter is not None),
        target_tokens=0,
        num_iterations=config.num_iterations or max(1, wanted // config.examples),
        tokens_per_step=config.rows * row_tokens,
        learning_rates=adapter_rates(config.lora) if config.lora else rl_rates(config, model),
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        dropout=config.lora.dropout if config.lora else 0.0,
        warmup_steps=0,
        warmdown_ratio=1.0,
        final_lr_frac=0.0,
        eval_rows=config.eval_questions,
        drawing=DrawingPlan(
            row_tokens=row_tokens,
            max_tokens=max_tokens,
            together=max(config.samples, min(MOST_TOGETHER, config.rows)),
        ),
        adapter=adapter,
    )
    return with_drawing(plan, resources)


def rl_rates(config: RlConfig, model: GPTConfig) -> dict[str, float]:
    """Return the learning rates of the first step, by group, as nanochat's chat_rl sets them."""
    recipe = RECIPES[model.arch]._replace(
        embedding_lr=config.embedding_lr,
        unembedding_lr=config.unembedding_lr,
        matrix_lr=config.matrix_lr,
        transferred=False,
    )
    rates = learning_rates(recipe, model, REFERENCE_BATCH)
    return {group: config.init_lr_frac * rate for group, rate in rates.items()}
