"""The optimizer of a whole model: the table of parameter groups, and the step.

To add an optimizer, write a `Rule` in a file of its own and use it in `PARAM_GROUPS`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import NamedTuple, cast

from mlxchat.config.lora import LEARNING_RATE
from mlxchat.config.recipes import RECIPES, Recipe
from mlxchat.model.config import Architecture
from mlxchat.model.cpu import sum_last
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.model.size import STACK
from mlxchat.optim.adamw import AdamW
from mlxchat.optim.gradients import Accumulate, compile_gradients
from mlxchat.optim.muon import Muon, NorMuon
from mlxchat.optim.rule import Rule, Scalar, Step
from mlxchat.optim.schedule import (
    ADAPTER,
    REFERENCE_BATCH,
    STEADY_MOMENTUM,
    learning_rates,
)
from mlxchat.runtime import machine, mx
from mlxchat.streams import in_parts

MATRIX = "matrix"


class ParamGroup(NamedTuple):
    """Parameters that have a rule and a learning rate in common."""

    name: str  # also of its learning rate
    pattern: str  # a regular expression that matches the beginning of its parameters' names
    rule: Rule


Members = tuple[ParamGroup, list[str]]
"""Names of parameters that their group's rule updates in one call."""


PARAM_GROUPS: dict[Architecture, tuple[ParamGroup, ...]] = {  # the first match counts
    "classic": (
        ParamGroup("embedding", r"transformer\.wte\.", AdamW((0.8, 0.95))),
        ParamGroup("unembedding", r"lm_head\.", AdamW((0.8, 0.95))),
        ParamGroup(MATRIX, r"transformer\.h\.", Muon()),
    ),
    "modern": (
        ParamGroup("embedding", r"transformer\.wte\.", AdamW((0.8, 0.995), 0.001)),
        ParamGroup("unembedding", r"lm_head\.", AdamW((0.8, 0.96), 0.01)),
        ParamGroup("value_embeds", r"value_embeds\.", AdamW((0.8, 0.995), 0.01)),
        ParamGroup("resid", r"resid_lambdas$", AdamW((0.8, 0.95), 0.05)),
        # Also the v0_lambdas of the era "values".
        ParamGroup("x0", r"[xv]0_lambdas$", AdamW((0.96, 0.95), 0.0)),
        ParamGroup("smear", r"smear_|backout_lambda$", AdamW((0.8, 0.95), 0.0)),
        ParamGroup(MATRIX, r"transformer\.h\.", NorMuon()),
    ),
}
ADAPTER_GROUP = ParamGroup(ADAPTER, r".*\.(lora_a|lora_b|m)$", AdamW((0.9, 0.999), 0.0))


def _groups(arch: Architecture) -> tuple[ParamGroup, ...]:
    return ADAPTER_GROUP, *PARAM_GROUPS[arch]


def group_of(arch: Architecture, name: str) -> ParamGroup:
    """Return the group of the parameter of that name.

    Raises:
        KeyError: the name matches no pattern.
    """
    for group in _groups(arch):
        if re.match(group.pattern, name):
            return group
    raise KeyError(name)


class Rates(NamedTuple):
    """The numbers that the schedules give for one step, float32 scalars."""

    learning: Arrays  # learning rates by name of the group
    momentum: mx.array  # of Muon
    weight_decay: mx.array  # of the groups whose rule has no constant one

    @property
    def shown(self) -> mx.array:
        """The learning rate that stands for all: that of the matrices, or of the adapter."""
        return self.learning[MATRIX if MATRIX in self.learning else ADAPTER]


Constants = dict[str, list[Scalar]]
"""The constants of each group's rule, by the group's name."""

UpdateFn = Callable[
    [Constants, Arrays, Arrays, Arrays, Rates, float, int], tuple[Arrays, Arrays, mx.array]
]
"""The update of one model: constants, parameters, gradients, state, rates, the limit of the norm
and the number of streams to new parameters, new state and the norm."""


def recipe_rates(recipe: Recipe, model: GPT, tokens_per_step: int = REFERENCE_BATCH) -> Rates:
    """Return a recipe's rates for ``model`` between warm-up and warm-down.

    An adapter has a rate of its own, whatever the recipe.
    """
    rates = learning_rates(recipe, model.config, tokens_per_step)
    if model.adapter is not None:
        rates = {ADAPTER: LEARNING_RATE}
    return Rates(
        {group: mx.array(rate) for group, rate in rates.items()},
        mx.array(STEADY_MOMENTUM[model.config.arch]),
        mx.array(recipe.weight_decay),
    )


class MuonAdamW:
    """Muon for the matrices of the blocks, AdamW for everything else: `PARAM_GROUPS`.

        optimizer = MuonAdamW(model)
        loss = optimizer.step(model, ids, targets)

    Args:
        model: the model to be trained, what is trained of it in float32.
        recipe: the source of the learning rates and the clipping of `step`; by default the
            architecture's.
        tokens_per_step: the number of tokens in a step. The modern recipe multiplies learning rates
            (but that of smear and backout) by (tokens_per_step / 2**19)^(1/2); the classic recipe
            ignores it. The default is nanochat's batch of 2**19 tokens: to train by hand in steps
            of few tokens, give their number, or the rates are too high.

    Attributes:
        state: arrays by name: ``step``, the number of updates, and each rule's ``state_names``.
        rates: the recipe's rates.
        grad_clip: the recipe's limit of the gradients' joint norm; 0 for none.
    """

    def __init__(
        self, model: GPT, recipe: Recipe | None = None, tokens_per_step: int = REFERENCE_BATCH
    ) -> None:
        arch, parameters = model.config.arch, dict(sorted(model.named_trainable().items()))
        recipe = recipe or RECIPES[arch]
        self.rates = recipe_rates(recipe, model, tokens_per_step)
        self.grad_clip = recipe.grad_clip
        self.state: Arrays = {"step": mx.array(0.0)}
        for name, p in parameters.items():
            rule = group_of(arch, name).rule
            for slot, array in zip(rule.state_names, rule.init(p), strict=True):
                self.state[slot.format(name)] = array
        members = list(_members(arch, parameters, model.dtype))
        compute = mx.compile(partial(compute_update, members, model.dtype))
        self._compute_update = cast(UpdateFn, compute)
        # On CPUs a kernel with numbers in it is vectorised; one that reads them from arrays is not.
        as_scalar: Callable[[float], Scalar] = float if machine().backend == "cpu" else mx.array
        self._constants = {
            group.name: [as_scalar(number) for number in group.rule.constants]
            for group in _groups(arch)
        }
        self._gradients_of: tuple[GPT, Accumulate] | None = None  # a model, its compiled gradients

    def step(
        self, model: GPT, ids: mx.array, targets: mx.array, rates: Rates | None = None
    ) -> mx.array:
        """Train ``model`` on one batch, in place; returns the loss before, a float32 scalar.

        Args:
            model: the model that the optimizer was made for, or another one of the same parameters;
                its gradients are compiled again whenever it is not the object of the last call.
            ids, targets: (B, T) integers; positions whose target is -1 do not count.
            rates: the rates of this step; by default the recipe's.
        """
        if self._gradients_of is None or self._gradients_of[0] is not model:
            self._gradients_of = model, compile_gradients(model)
        accumulate = self._gradients_of[1]
        ids, targets = mx.array(ids), mx.array(targets)
        count = mx.maximum((targets >= 0).sum(), 1)
        loss, gradients = accumulate(model.named_trainable(), ids, targets, count, {})
        self.update(model, gradients, rates or self.rates, self.grad_clip)
        del gradients  # so that the update can reuse their memory
        mx.eval(loss, model.parameters(), self.state)
        return loss

    def update(
        self,
        model: GPT,
        gradients: Arrays,
        rates: Rates,
        grad_clip: float = 0.0,
        streams: int = 1,
    ) -> mx.array:
        """Update ``model`` and the state in place; returns the norm of the gradients, a scalar.

        Nothing is computed yet. The new arrays take the memory of the old ones and of the gradients
        if nothing else refers to these when they are computed.

        Args:
            model: the model to update.
            gradients: the gradients by parameter name.
            rates: the rates of this step.
            grad_clip: the limit of the gradients' joint norm; 0 for none.
            streams: CPU streams that parameters are updated on at the same time.
        """
        parameters, self.state, norm = self._compute_update(
            self._constants,
            model.named_trainable(),
            gradients,
            self.state,
            rates,
            grad_clip,
            streams,
        )
        model.load_weights(list(parameters.items()), strict=False)
        return norm


def compute_update(
    members: Sequence[Members],
    dtype: mx.Dtype,
    constants: Constants,
    parameters: Arrays,
    gradients: Arrays,
    state: Arrays,
    rates: Rates,
    grad_clip: float,
    streams: int = 1,
) -> tuple[Arrays, Arrays, mx.array]:
    """Return the parameters and the state after a step, and the norm of the gradients.

    A function without side effects, so that it can be compiled. ``members`` are dealt out to the
    streams.
    """
    gradients, norm = clip(gradients, grad_clip)
    step = state["step"] + 1
    before = {**state, "step": step}
    parts = in_parts(
        [
            partial(_updated, dealt, dtype, constants, parameters, gradients, before, rates)
            for dealt in _deal(members, streams)
        ]
    )
    new_parameters, new_state = Arrays(), {"step": step}
    for some_parameters, some_state in parts:
        new_parameters |= some_parameters
        new_state |= some_state
    # In the order of the given state: `mx.compile` would trace again if the order of keys changed.
    return new_parameters, {name: new_state[name] for name in state}, norm


def _updated(
    members: Sequence[Members],
    dtype: mx.Dtype,
    constants: Constants,
    parameters: Arrays,
    gradients: Arrays,
    state: Arrays,
    rates: Rates,
) -> tuple[Arrays, Arrays]:
    """Return the members' parameters after the step whose number is in the state, and their state.

    They are computed one after another.
    """
    new_parameters, new_state = Arrays(), Arrays()
    momentum = rates.momentum
    for group, names in members:
        learning_rate = rates.learning[group.name]
        step = Step(
            state["step"],
            learning_rate,
            momentum,
            rates.weight_decay,
            dtype,
            constants[group.name],
        )
        slots = [[slot.format(name) for name in names] for slot in group.rule.state_names]
        ps, slot_arrays = group.rule.update(
            [parameters[name] for name in names],
            [gradients[name] for name in names],
            [[state[key] for key in keys] for keys in slots],
            step,
        )
        new_parameters.update(zip(names, ps, strict=True))
        for keys, values in zip(slots, slot_arrays, strict=True):
            new_state.update(zip(keys, values, strict=True))
        if group.rule.stacked:
            # The next stack reads `momentum`, so it is made to wait for this one: only one stack
            # takes up memory at a time.
            momentum = mx.depends(momentum, list(ps))
    return new_parameters, new_state


def _deal(members: Sequence[Members], streams: int) -> list[list[Members]]:
    """Divide the members among streams, which take turns; stacks are divided too."""
    dealt: list[list[Members]] = [[] for _ in range(streams)]
    turns = cycle(dealt)
    for group, names in members:
        for part in (names[first::streams] for first in range(min(streams, len(names)))):
            next(turns).append((group, part))
    return dealt


def _members(arch: Architecture, parameters: Arrays, dtype: mx.Dtype) -> Iterator[Members]:
    """Divide the parameters among groups, and those of stacked rules among stacks of one shape."""
    for group in _groups(arch):
        names = [name for name in parameters if group_of(arch, name) == group]
        if not group.rule.stacked:
            if names:
                yield group, names
            continue
        by_shape: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for name in names:
            by_shape[parameters[name].shape].append(name)
        for shape, alike in by_shape.items():
            count = max(1, STACK // (dtype.size * math.prod(shape)))
            for first in range(0, len(alike), count):
                yield group, alike[first : first + count]


def clip(gradients: Arrays, limit: float) -> tuple[Arrays, mx.array]:
    """Scale gradients so that their joint norm is at most ``limit``, as torch's clip_grad_norm_.

    Returns:
        The gradients, unchanged if the limit is 0, and their norm before, a float32 scalar.
    """
    squares = mx.array(0.0)
    for g in gradients.values():  # one after another: the squares are as large as the gradients
        squares = squares + sum_last(mx.depends(g, squares).square(), g.ndim)
    norm = mx.sqrt(squares)
    if limit == 0:
        return gradients, norm
    scale = mx.minimum(limit / (norm + 1e-6), 1.0)
    return {name: g * scale for name, g in gradients.items()}, norm
