"""The measurements that run in processes of their own: their functions and their numbers.

The functions are only named here, so that the checks need not load what the functions load.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class Measurement(BaseModel):
    """Base class of what is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Numbers = TypeVar("Numbers", bound=Measurement)


@dataclass(frozen=True)
class Probe(Generic[Numbers]):
    """A measurement that runs in a process of its own.

    Attributes:
        module: the module in this folder that has its function.
        function: the name of the function.
        numbers: what the function returns.
        seconds: the longest that it may take, with the start of its process.
    """

    module: str
    function: str
    numbers: type[Numbers]
    seconds: float


# ==== The disk ====


class Attempt(Measurement):
    """An operation on the disk that was tried."""

    seconds: float = 0.0
    refused: str = ""  # why the disk did not do it; "" if it did
    instead: str = ""  # what was done in its place


class Names(Measurement):
    """The way in which the disk tells names apart."""

    renamed: bool  # a folder with a file in it took another name, whole
    case_sensitive: bool


# ==== The device ====


class FastestWay(Measurement):
    """The way to compute something that was found to be the fastest."""

    question: str
    answer: str  # the way, and what came of each
    sound: bool  # no way failed or was wrong


class Device(Measurement):
    """The device that MLX computes on."""

    backend: str  # "metal", "cuda" or "cpu"
    name: str
    compute_dtype: str
    memory: int  # bytes that the backend can address
    largest_buffer: int  # bytes; 0 where MLX does not say
    buffers: int  # the most that may live at one time; 0 where MLX does not say
    nccl: bool
    openblas: str  # its version and build; "" if it is not loaded
    fastest_ways: tuple[FastestWay, ...] = ()  # that `mlxchat.autotune` has made so far


class FirstKernel(Measurement):
    """A small kernel, compiled for the first time."""

    seconds: float
    difference: float  # the largest, relative to what numpy computes


class Load(Measurement):
    """The seconds for which the device worked without a pause."""

    seconds: float
    longest: float  # seconds of the slowest piece of it


# ==== Arithmetic ====


class Products(Measurement):
    """Matrix products in three precisions."""

    float32: float  # FLOP/s, as are the others
    float16: float
    bfloat16: float


class Roundings(Measurement):
    """The errors of products in three precisions against float64, relative to their norm."""

    float32: float
    float16: float
    bfloat16: float


class Difference(Measurement):
    """The largest difference between two ways to compute the same, relative to its norm."""

    value: float
    where: str = ""


class Backward(Measurement):
    """Attention forward and backward."""

    seconds: float  # the median
    peak: int  # bytes, beyond what was there before
    difference: float  # from the formula in float32, relative to the norm
    dtype: str


# ==== Training ====


class Pace(Measurement):
    """The speed and the memory of training steps."""

    seconds: float  # of the fastest step: other programs can only slow a step down
    peak: int  # bytes

    def or_better(self, other: "Pace") -> "Pace":
        """Return the faster of two paces, with the larger of their peaks."""
        return Pace(seconds=min(self.seconds, other.seconds), peak=max(self.peak, other.peak))


class Steps(Measurement):
    """Training steps on one batch, in turn with and without a limit on memory."""

    first_seconds: float  # with compilation
    count: int  # of all steps
    tokens: int  # in a step
    first_loss: float
    last_loss: float
    free: Pace
    held: Pace
    wired: Pace | None  # None but on a Mac


WRITING = Probe("measured_storage", "try_write", Attempt, 20)
SYNCING = Probe("measured_storage", "try_sync", Attempt, 20)
LOCKING = Probe("measured_storage", "try_lock", Attempt, 20)
RENAMING = Probe("measured_storage", "try_rename", Names, 20)
LINKING = Probe("measured_storage", "try_link", Attempt, 20)
DEVICE = Probe("measured_device", "describe_device", Device, 60)
KERNEL = Probe("measured_device", "compile_kernel", FirstKernel, 60)
LOAD = Probe("measured_device", "work_without_pause", Load, 60)
PRODUCTS = Probe("measured_arithmetic", "time_products", Products, 60)
ROUNDINGS = Probe("measured_arithmetic", "round_products", Roundings, 60)
ROTATION = Probe("measured_arithmetic", "compare_rotation", Difference, 60)
GRADIENTS = Probe("measured_arithmetic", "compare_gradients", Difference, 90)
BACKWARD = Probe("measured_arithmetic", "time_attention", Backward, 60)
DECODED = Probe("measured_arithmetic", "compare_decoding", Difference, 60)
STEPS = Probe("measured_training", "take_steps", Steps, 90)
