"""Which parameter is updated how, and the optimizer of a whole model.

Every number that changes from step to step is an array, in the state or in the `Rates` of the step,
so that the compiled update is traced once.
"""

import math
from collections import defaultdict
from typing import NamedTuple

from mlxchat.model.config import Architecture
from mlxchat.model.size import STACK
from mlxchat.optim import adamw, muon
from mlxchat.optim import muon as normuon
from mlxchat.runtime import mx

Arrays = dict[str, mx.array]

MATRIX = "matrix"  # the group that Muon updates; AdamW updates the others


class Rates(NamedTuple):
    """What the schedules give for one step, scalars."""

    learning: Arrays  # by group
    momentum: mx.array  # of Muon
    weight_decay: mx.array  # classic: of AdamW; modern: of Muon


class AdamWGroup(NamedTuple):
    """The numbers of a group of parameters."""

    betas: tuple[float, float]
    weight_decay: float | None  # None: as the `Rates` say


GROUPS: dict[Architecture, dict[str, AdamWGroup]] = {
    "classic": {
        "embedding": AdamWGroup((0.8, 0.95), None),
        "unembedding": AdamWGroup((0.8, 0.95), None),
    },
    "modern": {
        "embedding": AdamWGroup((0.8, 0.995), 0.001),
        "unembedding": AdamWGroup((0.8, 0.96), 0.01),
        "value_embeds": AdamWGroup((0.8, 0.995), 0.01),
        "resid": AdamWGroup((0.8, 0.95), 0.05),
        "x0": AdamWGroup((0.96, 0.95), 0.0),
        "smear": AdamWGroup((0.8, 0.95), 0.0),
    },
}


def group_of(name: str) -> str:
    """The group of a parameter, by its name."""
    match name.split("."):
        case ["transformer", "h", *_]:
            return MATRIX
        case ["transformer", "wte", _]:
            return "embedding"
        case ["lm_head", _]:
            return "unembedding"
        case ["value_embeds", *_]:
            return "value_embeds"
        case ["resid_lambdas"]:
            return "resid"
        case ["x0_lambdas"] | ["v0_lambdas"]:
            return "x0"
        case ["smear_gate", _] | ["smear_lambda"] | ["backout_lambda"]:
            return "smear"
    raise KeyError(name)


def clip(gradients: Arrays, limit: float) -> tuple[Arrays, mx.array]:
    """Scale gradients so that their joint norm is at most ``limit``; returns the norm before.

    As torch.nn.utils.clip_grad_norm_ does. A limit of 0 leaves them alone.
    """
    squares = mx.array(0.0)
    for g in gradients.values():  # one after another: the squares are as large as the gradients
        squares = squares + mx.depends(g, squares).square().sum()
    norm = mx.sqrt(squares)
    if limit == 0:
        return gradients, norm
    scale = mx.minimum(limit / (norm + 1e-6), 1.0)
    return {name: g * scale for name, g in gradients.items()}, norm


class MuonAdamW:
    """Muon for the matrices of the blocks, AdamW for everything else.

    Args:
        parameters: by name, float32.
        arch: whose Muon, and whose groups of AdamW.
        dtype: in which Muon orthogonalises.

    Attributes:
        state: arrays by name: ``step``; ``muon.NAME``, in the modern architecture
            ``normuon.NAME`` too; ``adamw.NAME.m`` and ``adamw.NAME.v``.
    """

    def __init__(self, parameters: Arrays, arch: Architecture, dtype: mx.Dtype) -> None:
        self.dtype = dtype
        self.state: Arrays = {"step": mx.array(0.0)}
        self._modern = arch == "modern"
        self._groups = GROUPS[arch]
        by_shape: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, value in sorted(parameters.items()):
            if group_of(name) == MATRIX:
                by_shape[value.shape].append(name)
                self.state[f"muon.{name}"] = mx.zeros_like(value)
                if self._modern:
                    self.state[f"normuon.{name}"] = normuon.second_moment(value)
            else:
                self.state[f"adamw.{name}.m"] = mx.zeros_like(value)
                self.state[f"adamw.{name}.v"] = mx.zeros_like(value)

        self._stacks: list[list[str]] = []  # matrices that are updated together
        for shape, names in by_shape.items():
            count = max(1, STACK // (dtype.size * math.prod(shape)))
            self._stacks += [names[i : i + count] for i in range(0, len(names), count)]

    def update(
        self, parameters: Arrays, gradients: Arrays, state: Arrays, rates: Rates
    ) -> tuple[Arrays, Arrays]:
        """One step: new parameters and new state. Changes nothing, so that it can be compiled.

        What is given may be let go of then: the new arrays take the memory of the old.
        """
        new, after = Arrays(), {"step": state["step"] + 1}
        for name in parameters:
            group = group_of(name)
            if group == MATRIX:
                continue
            betas, weight_decay = self._groups[group]
            m, v = f"adamw.{name}.m", f"adamw.{name}.v"
            new[name], after[m], after[v] = adamw.update(
                parameters[name],
                gradients[name],
                state[m],
                state[v],
                after["step"],
                rates.learning[group],
                betas,
                rates.weight_decay if weight_decay is None else weight_decay,
            )
        lr, momentum = rates.learning[MATRIX], rates.momentum
        for names in self._stacks:
            held, seconds = (
                [f"muon.{name}" for name in names],
                [f"normuon.{name}" for name in names],
            )
            ps, gs = [parameters[name] for name in names], [gradients[name] for name in names]
            buffers = [state[name] for name in held]
            if self._modern:
                moments = [state[name] for name in seconds]
                ps, buffers, moments = normuon.normuon_update(
                    ps, gs, buffers, moments, lr, momentum, rates.weight_decay, self.dtype
                )
                after.update(zip(seconds, moments, strict=True))
            else:
                ps, buffers = muon.muon_update(ps, gs, buffers, lr, momentum, self.dtype)
            new.update(zip(names, ps, strict=True))
            after.update(zip(held, buffers, strict=True))
            momentum = mx.depends(momentum, ps)  # one stack after another: each takes memory
        return new, {name: after[name] for name in state}  # another order would be another trace
