"""A run that collapses says so once, when it begins to."""

from dataclasses import replace

import pytest

from mlxchat.telemetry.events import Rewarded
from mlxchat.train.collapse import WATCHED_STEPS, CollapseWatch

USUAL = Rewarded(0.0, 1, 0.3, 0.3, 0.1, 0.2, 30.0, 0.0, 0.2, 8000, 9000, 1.0)


def told(rewards: list[float], **numbers: float) -> list[tuple[int, str]]:
    """What is said, and after which step."""
    watch = CollapseWatch()
    return [
        (step, note)
        for step, reward in enumerate(rewards, 1)
        for note in watch.notes(replace(USUAL, step=step, reward=reward, **numbers))
    ]


def test_a_reward_that_falls_after_it_has_risen() -> None:
    rising = [0.2 + 0.01 * step for step in range(40)]
    falling = [0.6 - 0.03 * step for step in range(20)]
    [(step, note)] = told(rising + falling)
    assert 45 < step < 56
    assert note.startswith("The reward is falling: 0.4") and "`init_lr_frac`" in note


def test_negative_rewards_that_fall_after_they_have_risen() -> None:
    [(step, note)] = told([-2.0] * 20 + [-1.0] * 20 + [-2.0] * 20)
    assert step > 40 and "from a peak of -1.000" in note


@pytest.mark.parametrize("height", [0.0, -5.0])
@pytest.mark.parametrize("rewards", [[0.3] * 60, [0.3, 0.2] * 30, [0.01 * n for n in range(60)]])
def test_rewards_that_stay_or_rise(rewards: list[float], height: float) -> None:
    assert told([reward + height for reward in rewards]) == []


def test_an_entropy_near_zero() -> None:
    [(step, note)] = told([0.3] * 30, entropy=0.004)
    assert step == WATCHED_STEPS and "entropy has fallen to 0.0040" in note


def test_questions_that_are_nearly_all_settled() -> None:
    [(_, note)] = told([0.3] * 30, all_equal=0.98)
    assert "For 98% of the questions, all answers got the same reward" in note


def test_answers_that_are_all_wrong_but_rewarded_differently_are_learnt_from() -> None:
    assert told([0.3] * 30, all_wrong=1.0, all_equal=0.0) == []
