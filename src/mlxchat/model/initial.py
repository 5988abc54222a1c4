"""The parameters that training begins with, drawn from a key as nanochat distributes them."""

import math

from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx


def initialise(model: GPT, key: mx.array) -> None:
    """Draw the initial parameters of ``model``, in place."""
    draw = _classic if model.config.arch == "classic" else _modern
    drawn = []
    for name, weight in sorted(model.named_parameters().items()):
        key, own = mx.random.split(key)
        drawn.append((name, draw(name, weight.shape, model.config.n_embd, own)))
    model.load_weights(drawn)
    mx.eval(model.parameters())


def _classic(name: str, shape: tuple[int, ...], _width: int, key: mx.array) -> mx.array:
    """Embedding standard normal; head and what writes to the residual stream zero; other matrices
    normal with standard deviation min(1, sqrt(out/in)) / sqrt(in) (https://arxiv.org/abs/2310.17813).
    """
    if name == "lm_head.weight" or name.endswith("c_proj.weight"):
        return mx.zeros(shape)
    if name == "transformer.wte.weight":
        return mx.random.normal(shape, key=key)
    fan_out, fan_in = shape
    std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
    return mx.random.normal(shape, key=key) * std


def _modern(name: str, shape: tuple[int, ...], width: int, key: mx.array) -> mx.array:
    """Embedding and head normal, other matrices uniform, the gates of value embeddings slightly
    above neutral, the smear off.

    The weights of the residual stream fall from the first layer to the last, as do those of the
    embedding that is added to it.
    """
    bound = math.sqrt(3 / width)  # of a uniform distribution whose deviation is 1 / sqrt(width)
    match name.removesuffix(".weight").split(".")[-1]:
        case "wte":
            return 0.8 * mx.random.normal(shape, key=key)
        case "lm_head":
            return 0.001 * mx.random.normal(shape, key=key)
        case "c_proj" | "smear_lambda":
            return mx.zeros(shape)
        case "c_fc":
            return mx.random.uniform(-0.4 * bound, 0.4 * bound, shape, key=key)
        case "ve_gate" | "smear_gate":
            return mx.random.uniform(0, 0.02, shape, key=key)
        case "resid_lambdas":
            return mx.linspace(1.15, 1.05, shape[0])
        case "x0_lambdas":
            return mx.linspace(0.20, 0.05, shape[0])
        case "backout_lambda":
            return mx.full(shape, 0.2)
    return mx.random.uniform(-bound, bound, shape, key=key)
