"""Generation by a model in training, between two updates."""

from functools import partial

from mlxchat.model.decoding import read_position
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.model.lora import plain_weights
from mlxchat.runtime import machine, mx

FUSED = {".c_qkv.": (".c_q.", ".c_k.", ".c_v.")}


class Policy:
    """The model in training, in the form that generates fastest.

    On CPUs that is the model itself. On GPUs it is a copy in the compute dtype with a compiled
    step, which is traced once and takes the current weights; an adapter is merged into them, and
    nothing is quantized.

    Args:
        model: the model in training.
        copied: whether to keep a copy; by default on GPUs.
    """

    def __init__(self, model: GPT, copied: bool | None = None) -> None:
        self._model = model
        self._copied = machine().backend != "cpu" if copied is None else copied
        self._copy: GPT | None = None

    def current(self) -> GPT:
        """Return a model that generates with the weights of now; valid until the next call."""
        if not self._copied:
            return self._model
        if self._copy is None:
            self._copy = copy = GPT(self._model.config, self._model.dtype)
            copy.load_weights(list(plain_weights(self._model).items()))
            copy.prepare_for_inference(compiled=False)
            # With the weights as inputs: otherwise those of the first step would be traced.
            copy.decode_step = mx.compile(partial(read_position, copy), inputs=copy.state)
            return copy
        trained, copy = plain_weights(self._model), self._copy
        held = copy.named_parameters()
        now = [(name, _trained(name, trained).astype(old.dtype)) for name, old in held.items()]
        copy.load_weights(now)
        mx.eval(copy.parameters())
        return copy


def _trained(name: str, parameters: Arrays) -> mx.array:
    """Return a parameter of a model that was prepared for inference."""
    for fused, parts in FUSED.items():
        if fused in name:
            return mx.concatenate([parameters[name.replace(fused, part)] for part in parts])
    return parameters[name]
