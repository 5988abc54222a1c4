"""Continuous batching: sequences join and leave at any time, and all advance together.

A sequence joins once its prompt has been read, and leaves between any two tokens when its caller
says so. Each has its own settings, seed and penalties, and gets the same tokens as it would alone.
In float32 on CPUs, this holds unless two tokens are equally likely to within rounding, since
products of different shapes are summed in a different order. In bfloat16, as on GPUs, rounding
occasionally decides between tokens.

If the model has a compiled step, the number of rows is rounded up to a power of two, so that each
size is traced only once. On CPUs, where nothing is compiled, there is one row per sequence.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlxchat.config.inference import Sampling
from mlxchat.engine.generate import launches_ahead
from mlxchat.engine.rows import Layout, Past, SequenceRows
from mlxchat.engine.sampling import (
    Needs,
    RowSettings,
    apply_repetition_penalty,
    largest_logits,
    row_settings,
    sample_rows,
)
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

MOST_ALTERNATIVES = 20  # that can be reported beside a token
_UNUSED = Sampling(temperature=0)  # of the rows that fill up a power of two


@dataclass(frozen=True)
class TokenSettings:
    """The settings by which a sequence's tokens are chosen and reported.

    The penalties and the bias apply to the logits before the temperature: first the repetition
    penalty of ``sampling``, over the tokens of prompt and continuation, then the others.

    Attributes:
        sampling: the settings of the sampler.
        seed: of the random draws.
        presence_penalty: subtracted from the logits of tokens that were generated.
        frequency_penalty: subtracted as often as they were.
        logit_bias: added to the logits of these tokens.
        logprobs: report the log probability of each token and of this many of the most likely ones,
            at most `MOST_ALTERNATIVES`; None for neither. They refer to the model's own
            distribution, before temperature, penalties and bias.
    """

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    @property
    def changes_logits(self) -> bool:
        """Whether a penalty or a bias changes the logits."""
        penalties = self.presence_penalty or self.frequency_penalty or self.logit_bias
        return bool(penalties) or self.sampling.repetition_penalty != 1


class GeneratedToken(NamedTuple):
    """A generated token; the log probabilities are None and () unless they were asked for."""

    id: int
    forced: bool
    logprob: float | None
    top: tuple[tuple[int, float], ...]  # likeliest first


class ActiveSequence:
    """A sequence that a batch is generating.

    Attributes:
        ids: the tokens of the prompt and those that were returned.
        settings: how they are chosen.
    """

    def __init__(self, ids: Sequence[int], settings: TokenSettings) -> None:
        self.ids = list(ids)
        self.settings = settings


class _State(NamedTuple):
    """The arrays that the device keeps for each of B rows.

    Attributes:
        tokens: (B,), the tokens to be read next.
        latest: (B,), those before them.
        keys: (B, 2), of the draws.
        seen: (B, V), the tokens that the repetition penalty counts; None, like the two that follow,
            if no row has a penalty or a bias.
        counts: (B, V), how often each token was generated.
        bias: (B, V), added to the logits.
    """

    tokens: mx.array
    latest: mx.array
    keys: mx.array
    seen: mx.array | None = None
    counts: mx.array | None = None
    bias: mx.array | None = None


class _Rules(NamedTuple):
    """The settings that choose the tokens of all rows, and the parts that must be computed."""

    settings: RowSettings
    penalties: mx.array  # repetition, presence and frequency, (3, B, 1)
    needs: Needs
    alternatives: int  # 0 without log probabilities; the same for any number of them


class _Step(NamedTuple):
    """A step whose tokens may still be being computed."""

    members: list[ActiveSequence]
    tokens: mx.array  # (B,)
    scores: mx.array | None  # log probabilities, (B, V)
    top: tuple[mx.array, mx.array] | None  # the largest of them and their tokens, (B, n) each


class ContinuousBatch:
    """The sequences that are generated together.

    Args:
        model: the network. It and the batch are used by one thread.
    """

    def __init__(self, model: GPT) -> None:
        self.layout = Layout(model.config)
        self.members: list[ActiveSequence] = []  # by row
        self._model = model
        self._compiled = model.decode_step is not None
        self._choose = mx.compile(_choose) if self._compiled else _choose
        self._rows = SequenceRows(self.layout)
        self._state: _State | None = None
        self._rules: _Rules | None = None
        self._forced: dict[ActiveSequence, int] = {}
        self._under_way: _Step | None = None

    def join(
        self,
        ids: Sequence[int],
        past: Past,
        logits: mx.array,
        settings: TokenSettings,
        unpenalised: Set[int] = frozenset(),
    ) -> tuple[ActiveSequence, GeneratedToken]:
        """Let a sequence join; returns it with its first token.

        Args:
            ids: the prompt.
            past: what a cache holds that has read it, see `Layout.past`.
            logits: after the prompt, (1, V).
            settings: how its tokens are chosen.
            unpenalised: tokens of the prompt that the repetition penalty does not count.
        """
        member = ActiveSequence(ids, settings)
        state = self._initial_state(ids, settings, unpenalised)
        step, state = self._sample(logits, None, state, self._make_rules([settings], 1), [member])
        state = state._replace(tokens=step.tokens)
        mx.eval(state, step.scores, step.top)
        [(_, first)] = self._read(step, {}, {member})
        self._rows.join(past)
        self.members.append(member)
        self._reorder([*range(len(self.members) - 1)], state)
        return member, first

    def step(self) -> list[tuple[ActiveSequence, GeneratedToken]]:
        """Return the next token of each member.

        Where computations are launched ahead, a member that has joined since gets none this time.
        """
        step = self._under_way or self._launch()
        self._under_way, step_has = None, set(step.members)
        forced = {member: token for member, token in self._forced.items() if member in step_has}
        self._forced = {m: token for m, token in self._forced.items() if m not in step_has}
        assert self._state is not None
        self._state = self._state._replace(tokens=self._next_tokens(step, forced))
        if launches_ahead():
            self._under_way = self._launch()
        return self._read(step, forced, set(self.members))

    def force(self, member: ActiveSequence, token: int) -> None:
        """Make this the next token of a member, whichever would be chosen."""
        self._forced[member] = token

    def leave(self, member: ActiveSequence) -> None:
        """Remove a member."""
        row, last = self.members.index(member), len(self.members) - 1
        order = [*range(last)]
        if row < last:
            order[row] = last
        self._rows.leave(row)
        self.members = [self.members[n] for n in order]
        self._forced.pop(member, None)
        self._reorder(order)

    def past(self, member: ActiveSequence) -> tuple[list[int], Past]:
        """Return the tokens of a member that have been read, and copies of what is held of them."""
        read = member.ids[:-1]
        return read, self._rows.past(self.members.index(member), len(read))

    def _initial_state(
        self, ids: Sequence[int], settings: TokenSettings, unpenalised: Set[int]
    ) -> _State:
        V = self._model.config.vocab_size
        state = _State(
            mx.zeros(1, mx.int32), mx.array([ids[-1]], mx.int32), mx.random.key(settings.seed)[None]
        )
        if not settings.changes_logits:
            return state
        seen, bias = np.zeros((1, V), np.bool_), np.zeros((1, V), np.float32)
        seen[0, sorted({*ids} - unpenalised)] = True
        for token, number in settings.logit_bias.items():
            bias[0, token] = number
        return state._replace(
            seen=mx.array(seen), counts=mx.zeros((1, V), mx.int32), bias=mx.array(bias)
        )

    def _reorder(self, order: list[int], joined: _State | None = None) -> None:
        """Order the rows anew, with one that joins as the last, and fill up with unused ones."""
        if not self.members:
            self._state = self._rules = self._under_way = None
            return
        width = self._rows.size if self._compiled else len(self.members)
        parts = [state for state in (self._state, joined) if state is not None]
        if any(member.settings.changes_logits for member in self.members):
            parts = [_with_counts(part, self._model.config.vocab_size) for part in parts]
        else:
            parts = [part._replace(seen=None, counts=None, bias=None) for part in parts]
        if joined is not None:
            order = [*order, sum(len(part.tokens) for part in parts) - 1]
        index = mx.array([*order, *[order[0]] * (width - len(order))])
        self._state = _State._make(
            None if arrays[0] is None else mx.concatenate([*arrays])[index]
            for arrays in zip(*parts, strict=True)
        )
        self._rules = self._make_rules([member.settings for member in self.members], width)

    def _make_rules(self, of_members: Sequence[TokenSettings], width: int) -> _Rules:
        unused = [TokenSettings(_UNUSED)] * (width - len(of_members))
        rows = [*of_members, *unused]
        settings, needs = row_settings(
            [row.sampling for row in rows], self._model.config.vocab_size
        )
        penalties = [
            (row.sampling.repetition_penalty, row.presence_penalty, row.frequency_penalty)
            for row in rows
        ]
        reported = any(row.logprobs is not None for row in rows)
        alternatives = min(MOST_ALTERNATIVES, self._model.config.vocab_size) if reported else 0
        return _Rules(settings, mx.array(penalties).T[..., None], needs, alternatives)

    def _launch(self) -> _Step:
        """Read the tokens of all rows, and choose those that follow."""
        state, rules = self._state, self._rules
        assert state is not None and rules is not None
        logits = self._rows.read(self._model, state.tokens, state.latest)
        step, after = self._sample(logits, state.tokens, state, rules, list(self.members))
        self._state = after._replace(latest=state.tokens)
        mx.async_eval(step.tokens, step.scores, step.top, self._state, self._rows.arrays())
        return step

    def _sample(
        self,
        logits: mx.array,
        latest: mx.array | None,
        state: _State,
        rules: _Rules,
        members: list[ActiveSequence],
    ) -> tuple[_Step, _State]:
        tokens, scores, top, state = self._choose(logits, latest, state, rules)
        return _Step(members, tokens, scores, top), state

    def _next_tokens(self, step: _Step, forced: Mapping[ActiveSequence, int]) -> mx.array:
        """Return the tokens of the rows as they are now: the step's, or those that are forced."""
        tokens = step.tokens
        assert self._state is not None
        if step.members != self.members:  # some have joined or left while it was under way
            row = {member: n for n, member in enumerate(step.members)}
            own = len(tokens)
            order = [row.get(member, own + n) for n, member in enumerate(self.members)]
            width = len(self._state.tokens)
            index = mx.array([*order, *[order[0]] * (width - len(order))])
            tokens = mx.concatenate([tokens, self._state.tokens])[index]
        values = {n: forced[m] for n, m in enumerate(self.members) if m in forced}
        if not values:
            return tokens
        free = mx.array([n not in values for n in range(len(tokens))])
        chosen = mx.array([values.get(n, 0) for n in range(len(tokens))], tokens.dtype)
        return mx.where(free, tokens, chosen)

    def _read(
        self, step: _Step, forced: Mapping[ActiveSequence, int], present: Set[ActiveSequence]
    ) -> list[tuple[ActiveSequence, GeneratedToken]]:
        """Wait for a step, and return the tokens of the members that are still there."""
        drawn: list[int] = np.array(step.tokens).tolist()
        ids = [forced.get(member, drawn[row]) for row, member in enumerate(step.members)]
        logprobs = None
        if step.scores is not None:
            of_members = step.scores[: len(ids)]
            own = mx.take_along_axis(of_members, mx.array(ids)[:, None], axis=1)[:, 0]
            logprobs = np.array(own)
        chosen = []
        for row, (member, token) in enumerate(zip(step.members, ids, strict=True)):
            if member in present:
                member.ids.append(token)
                report = self._report(step, row, member.settings, logprobs)
                chosen.append((member, GeneratedToken(token, member in forced, *report)))
        return chosen

    @staticmethod
    def _report(
        step: _Step, row: int, settings: TokenSettings, logprobs: npt.NDArray[np.float32] | None
    ) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        if settings.logprobs is None or logprobs is None or step.top is None:
            return None, ()
        own = float(logprobs[row])
        if settings.logprobs == 0:
            return own, ()
        values, tokens = (np.array(array[row]).tolist() for array in step.top)
        pairs = sorted(zip(tokens, values, strict=True), key=lambda pair: (-pair[1], pair[0]))
        return own, tuple(pairs[: settings.logprobs])


def _with_counts(state: _State, vocab_size: int) -> _State:
    if state.seen is not None:
        return state
    shape = len(state.tokens), vocab_size
    return state._replace(
        seen=mx.zeros(shape, mx.bool_), counts=mx.zeros(shape, mx.int32), bias=mx.zeros(shape)
    )


def _choose(
    logits: mx.array, latest: mx.array | None, state: _State, rules: _Rules
) -> tuple[mx.array, mx.array | None, tuple[mx.array, mx.array] | None, _State]:
    """Choose the tokens that follow (B, V) logits.

    Args:
        logits: of the model.
        latest: the tokens before them, (B,), which count for the penalties; None for a prompt's.
        state: of the rows.
        rules: how to choose.

    Returns:
        The tokens, (B,); the log probabilities and the largest of them with their tokens, or None;
        the state after the draws.
    """
    scores, top = None, None
    if rules.alternatives:
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        top = largest_logits(scores, rules.alternatives)
    seen, counts, bias = state.seen, state.counts, state.bias
    if seen is not None and counts is not None and bias is not None:
        if latest is not None:
            new = mx.arange(seen.shape[-1]) == latest[:, None]
            seen, counts = seen | new, counts + new
        repetition, presence, frequency = rules.penalties
        logits = apply_repetition_penalty(logits, seen, repetition) + bias
        logits = logits - presence * (counts > 0) - frequency * counts
    tokens, keys = sample_rows(logits, state.keys, rules.settings, rules.needs)
    return tokens, scores, top, state._replace(keys=keys, seen=seen, counts=counts)
