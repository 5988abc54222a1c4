"""The interface of an update rule: how the parameters of one group change in a step."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, cast

from mlxchat.runtime import machine, mx

ArrayList = Sequence[mx.array]
Scalar = mx.array | float


class Step(NamedTuple):
    """The numbers of one step for one group; the arrays are float32 scalars.

    They are arrays, not floats, so that a compiled update is traced only once.
    """

    number: mx.array  # updates including this one
    lr: mx.array
    momentum: mx.array
    weight_decay: mx.array
    dtype: mx.Dtype  # the compute dtype, for matrix products
    constants: Sequence[Scalar] = ()  # the rule's own; floats on CPUs


class Rule(Protocol):
    """An optimizer of some parameters: `mlxchat.optim.adamw.AdamW` is the simplest one.

    Attributes:
        state_names: names of a parameter's state arrays in a checkpoint, where ``{}`` stands for
            the name of the parameter.
        stacked: whether parameters of one shape are updated together, stacked, instead of all
            parameters of a group one by one.
    """

    state_names: ClassVar[tuple[str, ...]]
    stacked: ClassVar[bool]

    @property
    def constants(self) -> tuple[float, ...]:
        """Numbers that reach `update` as the constants of its step, as arrays on GPUs.

        A number written into a compiled function makes it another kernel, and a GPU takes seconds
        to compile each.
        """

    def init(self, p: mx.array) -> tuple[mx.array, ...]:
        """Return a parameter's state before its first step, in the order of ``state_names``."""

    def update(
        self, ps: ArrayList, gs: ArrayList, state: Sequence[ArrayList], step: Step
    ) -> tuple[ArrayList, Sequence[ArrayList]]:
        """Return the new parameters and their new state; the arguments do not change.

        Args:
            ps: parameters, float32; of one shape if the rule is ``stacked``.
            gs: their gradients.
            state: for each of ``state_names`` the arrays of these parameters.
            step: the learning rate and the other numbers of this step.
        """


def in_place(x: mx.array) -> mx.array:
    """Return ``x``, computed (but on CUDA) by a kernel of its own that writes where it reads.

    `mx.compile` fuses elementwise operations into kernels with several outputs, and those allocate
    new memory for each output. It does not fuse `mx.depends`, which changes no value: the kernel
    ends at ``x``, its only output. On CUDA the fewer kernels count: there the activations of a
    step, which are gone by now, took many times that memory.
    """
    return x if machine().backend == "cuda" else cast(mx.array, mx.depends(x, x))
