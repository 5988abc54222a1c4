"""Which parameter is updated how, and the optimizer of a whole model.

Every number that changes from step to step is an array, in the state or in the `Rates` of the step,
so that the compiled update is traced once.
"""

from collections import defaultdict
from typing import NamedTuple

from mlxchat.optim import adamw, muon
from mlxchat.runtime import mx

Arrays = dict[str, mx.array]

EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"


class Rates(NamedTuple):
    """What the schedules give for one step, scalars."""

    embedding: mx.array
    unembedding: mx.array
    matrix: mx.array
    momentum: mx.array


def clip(gradients: Arrays, limit: float) -> tuple[Arrays, mx.array]:
    """Scale gradients so that their joint norm is at most ``limit``; returns the norm before.

    As torch.nn.utils.clip_grad_norm_ does. A limit of 0 leaves them alone.
    """
    norm = mx.sqrt(sum((g.square().sum() for g in gradients.values()), mx.array(0.0)))
    if limit == 0:
        return gradients, norm
    scale = mx.minimum(limit / (norm + 1e-6), 1.0)
    return {name: g * scale for name, g in gradients.items()}, norm


class MuonAdamW:
    """Muon for the matrices of the blocks, AdamW for the embedding and the head.

    Args:
        parameters: by name, float32.
        weight_decay: of the AdamW parameters.
        dtype: in which Muon orthogonalises.

    Attributes:
        state: arrays by name: ``step``; ``muon.NAME``; ``adamw.NAME.m`` and ``adamw.NAME.v``.
    """

    def __init__(self, parameters: Arrays, weight_decay: float, dtype: mx.Dtype) -> None:
        self.weight_decay = weight_decay
        self.dtype = dtype
        self.state: Arrays = {"step": mx.array(0.0)}
        self._by_shape: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, value in sorted(parameters.items()):
            if name in (EMBEDDING, HEAD):
                self.state[f"adamw.{name}.m"] = mx.zeros_like(value)
                self.state[f"adamw.{name}.v"] = mx.zeros_like(value)
            else:
                self._by_shape[value.shape].append(name)
                self.state[f"muon.{name}"] = mx.zeros_like(value)

    def update(
        self, parameters: Arrays, gradients: Arrays, state: Arrays, rates: Rates
    ) -> tuple[Arrays, Arrays]:
        """One step: new parameters and new state. Changes nothing, so that it can be compiled."""
        new, after = {}, {"step": state["step"] + 1}
        for name, lr in ((EMBEDDING, rates.embedding), (HEAD, rates.unembedding)):
            m, v = f"adamw.{name}.m", f"adamw.{name}.v"
            new[name], after[m], after[v] = adamw.update(
                parameters[name],
                gradients[name],
                state[m],
                state[v],
                after["step"],
                lr,
                self.weight_decay,
            )
        for names in self._by_shape.values():
            stacked, buffers = muon.update(
                mx.stack([parameters[name] for name in names]),
                mx.stack([gradients[name] for name in names]),
                mx.stack([state[f"muon.{name}"] for name in names]),
                rates.matrix,
                rates.momentum,
                self.dtype,
            )
            new.update(zip(names, stacked, strict=True))
            after.update(zip((f"muon.{name}" for name in names), buffers, strict=True))
        return new, after
