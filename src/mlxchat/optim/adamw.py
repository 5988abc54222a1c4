"""AdamW: Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101).

m <- beta1 m + (1 - beta1) g
v <- beta2 v + (1 - beta2) g^2
p <- (1 - lr decay) p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mlxchat.optim.rule import ArrayList, Step, in_place
from mlxchat.runtime import mx

EPS = 1e-10


@dataclass(frozen=True)
class AdamW:
    """AdamW as torch computes it. Its state is the first moment ``m`` and the second moment ``v``.

    Args:
        betas: decay rates of the two moments.
        weight_decay: a constant; None takes that of the step.
    """

    betas: tuple[float, float]
    weight_decay: float | None = None

    state_names: ClassVar[tuple[str, ...]] = ("adamw.{}.m", "adamw.{}.v")
    stacked: ClassVar[bool] = False

    @property
    def constants(self) -> tuple[float, ...]:
        """The decay rates, each with its difference from 1, and a constant weight decay."""
        beta1, beta2 = self.betas
        rates = beta1, 1 - beta1, beta2, 1 - beta2
        return rates if self.weight_decay is None else (*rates, self.weight_decay)

    def init(self, p: mx.array) -> tuple[mx.array, ...]:
        """Return two zero moments of the parameter's shape."""
        return mx.zeros_like(p), mx.zeros_like(p)

    def update(
        self, ps: ArrayList, gs: ArrayList, state: Sequence[ArrayList], step: Step
    ) -> tuple[ArrayList, Sequence[ArrayList]]:
        """Return the new parameters and moments."""
        new = [self._update(p, g, m, v, step) for p, g, m, v in zip(ps, gs, *state, strict=True)]
        ps, *state = zip(*new, strict=True)
        return ps, state

    def _update(
        self, p: mx.array, g: mx.array, m: mx.array, v: mx.array, step: Step
    ) -> tuple[mx.array, mx.array, mx.array]:
        beta1, rest1, beta2, rest2, *constant = step.constants
        decay = constant[0] if constant else step.weight_decay
        m = in_place(beta1 * m + rest1 * g)
        v = in_place(beta2 * v + rest2 * g * g)
        root = mx.sqrt(v) / mx.sqrt(1 - beta2**step.number) + EPS
        p = p * (1 - step.lr * decay) - (step.lr / (1 - beta1**step.number)) * m / root
        return p, m, v
