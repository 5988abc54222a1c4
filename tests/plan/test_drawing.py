"""The plan of reinforcement learning: rows, steps, and how many answers are drawn at a time."""

import pytest

from mlxchat.config.rl import RlConfig
from mlxchat.errors import ConfigError, MemoryLimitError
from mlxchat.model.config import GPTConfig
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import refitted
from mlxchat.train.rl_plan import MOST_TOGETHER, QuestionSurvey, rl_plan

MODEL = GPTConfig.from_depth(4, vocab_size=4096, sequence_len=512)
FOUND = QuestionSurvey(train=800, held_out=100, different=100, longest=30)
AMPLE = Resources(2**34, value_bytes=4, scores_held="none", chunk_rows=128)


def test_rows_are_as_long_as_prompts_and_answers_may_be() -> None:
    plan = rl_plan(RlConfig(max_tokens=100), MODEL, FOUND, AMPLE)
    assert plan.drawing is not None
    assert (plan.drawing.row_tokens, plan.drawing.max_tokens) == (130, 100)
    assert plan.tokens_per_step == 256 * 130 and plan.rows_per_step == 256
    assert plan.num_iterations == 800 // 16
    assert plan.drawing.together == 256
    assert rl_plan(RlConfig(max_tokens=9999), MODEL, FOUND, AMPLE).row_tokens == 512


def test_questions_in_several_wordings_are_told() -> None:
    assert FOUND.summary("gsm8k") == (
        "gsm8k: 800 questions to train on, 100 held out; prompts of up to 30 tokens."
    )
    few = FOUND._replace(different=13).summary("spelling-2")
    assert "100 held out (13 different ones, some in several wordings);" in few


def test_fewer_answers_are_drawn_at_a_time_in_less_memory() -> None:
    config = RlConfig(examples=64, samples=32)
    ample = rl_plan(config, MODEL, FOUND, AMPLE)
    little = rl_plan(config.model_copy(update={"memory_limit": "600MiB"}), MODEL, FOUND, AMPLE)
    assert ample.drawing is not None and little.drawing is not None
    assert ample.drawing.together == MOST_TOGETHER > little.drawing.together >= 1
    assert little.peak <= little.memory_limit
    with pytest.raises(MemoryLimitError):
        rl_plan(config.model_copy(update={"memory_limit": "1MB"}), MODEL, FOUND, AMPLE)


def test_a_saved_plan_is_kept_where_it_fits() -> None:
    config = RlConfig(examples=4, samples=8)
    plan = rl_plan(config, MODEL, FOUND, AMPLE)
    assert refitted(plan, config, AMPLE) == plan
    less = config.model_copy(update={"memory_limit": "300MiB"})
    again = refitted(plan, less, AMPLE)
    assert again.row_tokens == plan.row_tokens
    assert again.drawing is not None and again.drawing.together <= 32


def test_questions_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no room"):
        rl_plan(RlConfig(), MODEL, FOUND._replace(longest=500), AMPLE)
