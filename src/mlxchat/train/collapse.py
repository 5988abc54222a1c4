"""Warns early when a run collapses: its reward falls, or its answers become all the same.

Both happen when learning rates are too high: rewards that had risen fall within some tens of steps,
or the entropy goes to zero, so all answers to a question are the same and nothing more can be
learned.
"""

import math
from collections import deque

from mlxchat.telemetry.events import Rewarded

WATCHED_STEPS = 10  # that are averaged
MIN_REWARD_RISE = 0.1  # after a smaller one, a fall is noise
MIN_RISE_KEPT = 0.6  # share of the rise; if less is left of it, the reward is falling
MIN_ENTROPY = 0.01  # nats a token: a second choice once in a thousand tokens
MAX_ALL_EQUAL = 0.95  # share of questions all of whose answers got the same reward


class CollapseWatch:
    """Watches a run's answers and warns once about each kind of problem.

    Args:
        rate: the setting that lowers all learning rates.
    """

    def __init__(self, rate: str = "init_lr_frac") -> None:
        self._recent: deque[Rewarded] = deque(maxlen=WATCHED_STEPS)
        self._first: float | None = None  # average of the reward
        self._highest = -math.inf
        self._warned: set[str] = set()
        self._remedy = (
            f"Press Ctrl-C to save and stop the run. Smaller learning rates help: `{rate}`."
        )

    def notes(self, event: Rewarded) -> list[str]:
        """Return new warnings after a step."""
        self._recent.append(event)
        if len(self._recent) < WATCHED_STEPS:
            return []
        reward, entropy = self._mean("reward"), self._mean("entropy")
        self._first = reward if self._first is None else self._first
        self._highest = max(self._highest, reward)
        risen, fallen = self._highest - self._first, self._highest - reward
        notes = dict[str, str]()
        if risen >= MIN_REWARD_RISE and fallen > (1 - MIN_RISE_KEPT) * risen:
            notes["reward"] = (
                f"The reward is falling: {reward:.3f} in the last {WATCHED_STEPS} steps, from a "
                f"peak of {self._highest:.3f}. {self._remedy} The best checkpoint is kept."
            )
        if entropy < MIN_ENTROPY:
            notes["entropy"] = (
                f"The entropy has fallen to {entropy:.4f} nats per token: nearly all answers to a "
                f"question are the same, so there is little left to learn. {self._remedy}"
            )
        all_equal = self._mean("all_equal")
        if all_equal > MAX_ALL_EQUAL:
            notes["all_equal"] = (
                f"For {all_equal:.0%} of the questions, all answers got the same reward, so there "
                "is little to learn from. Another `level` or `task` would teach more."
            )
        fresh = [note for kind, note in notes.items() if kind not in self._warned]
        self._warned |= notes.keys()
        return fresh

    def _mean(self, name: str) -> float:
        return float(sum(getattr(event, name) for event in self._recent)) / len(self._recent)
