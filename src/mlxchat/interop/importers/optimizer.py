"""The optimizer state that nanochat saved beside a model, if it is in one file.

With several GPUs each saves its own share, cut along rows and between matrices; such files are not
put together again. Source: nanochat/gpt.py (the order of the parameters), muon.py, adamw.py at
commit dfc8833 and optim.py at 92d63d4.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from mlxchat.checkpoint.files import damaged
from mlxchat.errors import CheckpointError, MlxchatError, NotFound
from mlxchat.interop import torch_file
from mlxchat.interop.importers.model import FLOATS
from mlxchat.interop.torch_file import TorchTensor
from mlxchat.model.config import GPTConfig
from mlxchat.runtime import mx

MATRICES = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "attn.ve_gate")
MATRICES_OF_MLP = ("mlp.c_fc", "mlp.c_proj")
Shapes = Mapping[str, tuple[int, ...]]

_WITHOUT = "Import the model without `with_optimizer`."


@dataclass(frozen=True, eq=False)
class _Row:
    """One of several matrices that lie stacked in a tensor."""

    stack: TorchTensor
    index: int
    read_stack: Callable[
        [TorchTensor], mx.array
    ]  # caches the last stack, so that it is read once, not once per row

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]

    @property
    def dtype(self) -> mx.Dtype:
        return self.stack.dtype

    def read(self) -> mx.array:
        return self.read_stack(self.stack)[self.index]


def find_optimizer(model: Path, step: int, config: GPTConfig) -> Path:
    """Return the optimizer's only file of a step. Classic nanochat's name has no rank.

    Args:
        model: the file with the model's tensors.
        step: the model's step.
        config: the model's configuration.

    Raises:
        NotFound: there is no such file.
        CheckpointError: there are files of several GPUs, or the era is neither first nor last.
    """
    if config.era not in _READERS:
        raise CheckpointError(
            "Optimizer state can only be imported from nanochat's first and last eras, not from "
            f"{config.era!r}.",
            _WITHOUT,
        )
    ranks = sorted(model.parent.glob(f"optim_{step:06d}_rank*.pt"))
    whole = model.parent / f"optim_{step:06d}.pt"
    if len(ranks) > 1:
        raise _not_whole(ranks[0], f"there are {len(ranks)} such files, one for each GPU")
    if not ranks and not whole.exists():
        raise NotFound(f"There is no optimizer state next to {model}.", _WITHOUT)
    return ranks[0] if ranks else whole


def read_foreign_optimizer(path: Path, config: GPTConfig, expected: Shapes) -> dict[str, mx.array]:
    """Read the state in the form of `mlxchat.optim.optimizer.MuonAdamW`, in float32.

    Args:
        path: the file that `find_optimizer` found.
        config: the model's configuration.
        expected: the names and shapes of the state.

    Raises:
        CheckpointError: it is not the state of one GPU, or is damaged.
    """
    matrices = [name for layer in range(config.n_layer) for name in _matrices(layer, expected)]
    shapes = {name: expected[f"muon.{name}"] for name in matrices}
    state = dict(_READERS[config.era](path, torch_file.read_torch(path), shapes))
    found = {name: value for name, value in state.items() if name != "step"}
    for name in expected.keys() - {"step"}:
        tensor = found.get(name)
        if tensor is None or tensor.shape != expected[name] or tensor.dtype not in FLOATS:
            raise _not_whole(path, f"the state of {name} is missing or not of {expected[name]}")
    arrays = {"step": mx.array(state["step"])}
    for name, tensor in found.items():
        arrays[name] = mx.contiguous(tensor.read().astype(mx.float32))
        mx.eval(arrays[name])
    return {name: arrays[name] for name in expected}


def _matrices(layer: int, expected: Shapes) -> Iterator[str]:
    """Yield the names of a layer's matrices, in the order in which nanochat creates them."""
    for matrix in (*MATRICES, *MATRICES_OF_MLP):
        name = f"transformer.h.{layer}.{matrix}.weight"
        if f"muon.{name}" in expected:
            yield name


def _classic(path: Path, value: Any, matrices: Shapes) -> Iterator[tuple[str, Any]]:
    """Yield the state of AdamW (head, embedding) and of Muon (a group per matrix size)."""
    match value:
        case [
            {"state": dict() as adamw},
            {"state": dict() as muon, "param_groups": [*groups]},
        ]:
            pass
        case _:
            raise damaged(path, "not the states of AdamW and Muon")
    yield from _adamw(path, adamw, ["lm_head.weight", "transformer.wte.weight"])
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for name, shape in matrices.items():
        by_size[prod(shape)].append(name)
    for group in groups:
        buffers = [_of(path, muon, key, "momentum_buffer") for key in _keys(path, group)]
        names = by_size.pop(prod(buffers[0].shape), [])
        if len(names) != len(buffers):
            raise _not_whole(
                path, f"Muon's state has {len(buffers)} matrices instead of {len(names)}"
            )
        yield from ((f"muon.{name}", buffer) for name, buffer in zip(names, buffers, strict=True))


def _modern(path: Path, value: Any, matrices: Shapes) -> Iterator[tuple[str, Any]]:
    """Yield the state of one optimizer: groups of AdamW, then of Muon, stacked by shape."""
    match value:
        case {"state": dict() as state, "param_groups": [*groups]}:
            pass
        case _:
            raise damaged(path, "not the state of MuonAdamW")
    by_shape: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, shape in matrices.items():
        by_shape[shape].append(name)
    embedded = [name.split(".")[2] for name in matrices if name.endswith("ve_gate.weight")]
    names = [
        "lm_head.weight",
        "transformer.wte.weight",
        *(f"value_embeds.{layer}.weight" for layer in embedded),
        "resid_lambdas",
        "x0_lambdas",
        "smear_gate.weight",
        "smear_lambda",
        "backout_lambda",
    ]
    yield from _adamw(path, state, names)
    firsts = [_keys(path, group)[0] for group in groups]
    stacks = [key for key in firsts if key >= len(names)]
    read_stack = lru_cache(maxsize=1)(TorchTensor.read)
    for key, shape in zip(stacks, sorted(by_shape), strict=False):
        held = by_shape[shape]
        for ours, theirs in (("muon", "momentum_buffer"), ("normuon", "second_momentum_buffer")):
            stack = _of(path, state, key, theirs)
            if stack.shape[:1] != (len(held),) or len(stack.shape) != 3:
                raise _not_whole(
                    path, f"Muon's state for {shape} does not have {len(held)} matrices"
                )
            for index, name in enumerate(held):
                yield f"{ours}.{name}", _Row(stack, index, read_stack)


def _adamw(path: Path, state: Mapping[Any, Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the moments of parameters in nanochat's order, and their common number of steps."""
    steps = set()
    for key, name in enumerate(names):
        yield f"adamw.{name}.m", _of(path, state, key, "exp_avg")
        yield f"adamw.{name}.v", _of(path, state, key, "exp_avg_sq")
        steps.add(_number(path, state[key].get("step")))
    if len(steps) != 1:
        raise damaged(path, "AdamW's parameters have different step counts")
    yield "step", steps.pop()


def _number(path: Path, value: Any) -> float:
    if isinstance(value, TorchTensor) and prod(value.shape) == 1:
        value = value.read().item()
    if not isinstance(value, int | float):
        raise damaged(path, "AdamW's state has no step count")
    return float(value)


def _of(path: Path, state: Mapping[Any, Any], key: int, what: str) -> TorchTensor:
    entry = state.get(key)
    tensor = entry.get(what) if isinstance(entry, dict) else None
    if not isinstance(tensor, TorchTensor):
        raise _not_whole(path, f"parameter {key!a:.20} has no {what}")
    return tensor


def _keys(path: Path, group: Any) -> list[int]:
    match group:
        case {"params": [*keys]} if keys and all(isinstance(key, int) for key in keys):
            return keys
    raise damaged(path, "a group without parameters")


def _not_whole(path: Path, reason: str) -> MlxchatError:
    return CheckpointError(
        f"{path.name} does not contain that model's complete optimizer state: {reason}.",
        f"Only a run on a single GPU saves it completely. {_WITHOUT}",
    )


_READERS = {"classic": _classic, "modern": _modern}
