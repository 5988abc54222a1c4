"""Compares what MLX computes here with numpy, with the CPU and with formulas written out.

Sizes are chosen to take about a second: small on CPUs, larger on GPUs.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import numpy.typing as npt

from mlxchat.autotune import fixed
from mlxchat.doctor.probes import Backward, Difference, Products, Roundings
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import next_logits, prefill
from mlxchat.model.block import causal_attention
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.model.rope import Rope, apply_rope
from mlxchat.optim.gradients import compile_gradients
from mlxchat.runtime import machine, matmul_flops, mx, nn

_SEED = 0
DEPTH = 3  # with two layers, modern backout subtracts the last one, and has no gradient
SPREAD = 0.02  # standard deviation of the noise added to new parameters; many are zero
_BASE = 10_000.0
ATTENTION_ROUNDS = 5  # of which the median counts
ATTENTION_SECONDS = 6.0  # after which no new round starts

Floats = npt.NDArray[np.float32]


# ==== Products ====


def time_products(seconds: float = 0.5) -> Products:
    """Measure the speed of products in each precision, for ``seconds`` each."""
    return Products(
        float32=matmul_flops(seconds, mx.float32),
        float16=matmul_flops(seconds, mx.float16),
        bfloat16=matmul_flops(seconds, mx.bfloat16),
    )


def round_products(rows: int = 64, inner: int = 4096) -> Roundings:
    """Compare (rows, inner) @ (inner, rows) with float64, on the same rounded numbers."""
    random = np.random.default_rng(_SEED)
    a, b = (random.standard_normal(shape, np.float32) for shape in ((rows, inner), (inner, rows)))

    def difference(dtype: mx.Dtype) -> float:
        x, y = mx.array(a).astype(dtype), mx.array(b).astype(dtype)
        exact = _as_numpy(x).astype(np.float64) @ _as_numpy(y).astype(np.float64)
        return _relative(_as_numpy(x @ y), exact)

    return Roundings(
        float32=difference(mx.float32),
        float16=difference(mx.float16),
        bfloat16=difference(mx.bfloat16),
    )


# ==== Rotation ====


def compare_rotation(positions: int = 300) -> Difference:
    """Compare the compiled rotation of (2, positions, 2, 64), and its gradient, with numpy.

    It reads half of a head's dimensions backwards, by a negative stride.
    """
    shape, width = (2, positions, 2, 64), 64
    random = np.random.default_rng(_SEED)
    x, cotangent = (random.standard_normal(shape, np.float32) for _ in range(2))
    rope = Rope(_BASE, 0)

    def there_and_back(x: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
        (y,), (gradient,) = mx.vjp(lambda x: apply_rope(x, rope), [x], [cotangent])
        return y, gradient

    y, gradient = mx.compile(there_and_back)(mx.array(x), mx.array(cotangent))
    frequencies = _BASE ** (-np.arange(0, width, 2) / width)
    theta = (np.arange(positions)[:, None] * frequencies)[:, None]  # (positions, 1, 32)
    differences = {
        "forward pass": _relative(np.array(y), _rotated(x, theta)),
        "gradient": _relative(np.array(gradient), _rotated(cotangent, -theta)),
    }
    return _worst(differences)


def _rotated(x: Floats, theta: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.cos(theta), np.sin(theta)
    return np.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)


# ==== Gradients ====


def compare_gradients(
    arch: Architecture, positions: int = 128, vocab_size: int = 512
) -> Difference:
    """Compare the compiled loss and gradients with those of the CPU device, not compiled.

    The model has three layers, in float32. Training orders its backward pass and forms the gradient
    of the loss with the loss; on the CPU all logits exist, and MLX differentiates.
    """
    config = GPTConfig.from_depth(DEPTH, vocab_size, positions, head_dim=32, arch=arch)
    model = _model(config, mx.float32)
    random = np.random.default_rng(_SEED)
    ids = mx.array(random.integers(vocab_size, size=(2, positions + 1), dtype=np.int32))
    ids, targets = ids[:, :-1], ids[:, 1:]
    parameters = model.named_parameters()
    accumulate = compile_gradients(model)
    count = mx.array(targets.size)
    loss, gradients = accumulate(parameters, ids, targets, count, Arrays())
    mx.eval(loss, gradients)

    def plain(parameters: Arrays) -> mx.array:
        with model.using(parameters):
            return nn.losses.cross_entropy(model(ids), targets, reduction="mean")

    before = mx.default_device()
    mx.disable_compile()
    mx.set_default_device(mx.Device(mx.cpu))
    try:
        with fixed(norm="formula"):  # our kernels run on GPUs only
            plain_loss, plain_gradients = mx.value_and_grad(plain)(parameters)
            mx.eval(plain_loss, plain_gradients)
    finally:
        mx.set_default_device(before)
        mx.enable_compile()
    pairs = {name: (gradients[name], plain_gradients[name]) for name in parameters}
    pairs["loss"] = loss, plain_loss
    differences = {name: _relative(np.array(a), np.array(b)) for name, (a, b) in pairs.items()}
    return _worst(differences)


# ==== Attention ====


def time_attention(shape: tuple[int, int, int, int] | None = None) -> Backward:
    """Time causal attention forward and backward, and compare both with the formula in float32.

    Args:
        shape: (B, H, T, D); by default that of depth 12 on a GPU, a small one on a CPU.
    """
    here = machine()
    B, H, T, D = shape or ((1, 2, 512, 64) if here.backend == "cpu" else (1, 6, 2048, 128))
    keys = mx.random.split(mx.random.key(_SEED), 4)
    q, k, v, cotangent = (
        mx.random.normal((B, H, T, D), key=k).astype(here.compute_dtype) for k in keys
    )
    scale = D**-0.5

    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return causal_attention(q, k, v, scale, window=T)

    def formula(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scores = scale * q @ k.swapaxes(2, 3) + mx.triu(mx.full((T, T), -mx.inf), 1)
        return mx.softmax(scores, axis=-1) @ v

    def both_ways(
        function: Callable[[mx.array, mx.array, mx.array], mx.array], dtype: mx.Dtype
    ) -> list[mx.array]:
        inputs = [x.astype(dtype) for x in (q, k, v)]
        outputs, gradients = mx.vjp(function, inputs, [cotangent.astype(dtype)])
        return [*outputs, *gradients]

    exact = [np.array(x) for x in both_ways(formula, mx.float32)]
    computed = [_as_numpy(x) for x in both_ways(attention, here.compute_dtype)]
    difference = max(map(_relative, computed, exact))
    del exact, computed
    mx.clear_cache()
    mx.reset_peak_memory()
    begun, held, times = time.perf_counter(), mx.get_active_memory(), list[float]()
    while len(times) < ATTENTION_ROUNDS and (
        not times or time.perf_counter() - begun < ATTENTION_SECONDS
    ):
        start = time.perf_counter()
        mx.eval(both_ways(attention, here.compute_dtype))
        times.append(time.perf_counter() - start)
    return Backward(
        seconds=median(times),
        peak=mx.get_peak_memory() - held,
        difference=difference,
        dtype=str(here.compute_dtype).rpartition(".")[2],
    )


# ==== Decoding ====


def compare_decoding(read: int = 1000, decoded: int = 120) -> Difference:
    """Compare the logits of tokens decoded one after another with those of one pass over all.

    The model has two layers and half as many key heads as query heads.

    Args:
        read: positions that are read at once before.
        decoded: positions that follow one by one.
    """
    config = GPTConfig(
        sequence_len=read + decoded, vocab_size=512, n_layer=2, n_head=4, n_kv_head=2, n_embd=256
    )
    model = _model(config, machine().compute_dtype)
    random = np.random.default_rng(_SEED)
    ids = random.integers(config.vocab_size, size=read + decoded).tolist()
    whole = model(mx.array([ids]))[0, read:]  # (decoded, V)
    mx.eval(whole)
    model.prepare_for_inference()
    cache, logits = KVCache(config), []
    mx.eval(prefill(model, ids[:read], cache))
    for token in ids[read:]:
        logits.append(next_logits(model, mx.array([token]), cache)[0])  # (V,)
        mx.async_eval(logits[-1])
    differences = {
        f"at position {read + number:,}": _relative(np.array(one), np.array(other))
        for number, (one, other) in enumerate(zip(logits, whole, strict=True))
    }
    return _worst(differences)


# ==== Parts ====


def _model(config: GPTConfig, dtype: mx.Dtype) -> GPT:
    """Return a new model with noise on its parameters, so that no gradient is zero."""
    model = GPT.new(config, _SEED, dtype)
    parameters = model.named_parameters()
    keys = mx.random.split(mx.random.key(_SEED + 1), len(parameters))
    for key, (name, value) in zip(keys, parameters.items(), strict=True):
        parameters[name] = value + SPREAD * mx.random.normal(value.shape, key=key)
    model.load_weights(list(parameters.items()))
    mx.eval(model.parameters())
    return model


def _as_numpy(x: mx.array) -> Floats:
    return np.array(x.astype(mx.float32))


def _relative(computed: npt.NDArray[np.floating], exact: npt.NDArray[np.floating]) -> float:
    """Return the norm of the difference as a share of the norm; infinite if one is NaN."""
    difference = np.linalg.norm(computed.astype(np.float64) - exact)
    share = float(difference / np.linalg.norm(exact))
    return share if np.isfinite(share) else float("inf")


def _worst(differences: dict[str, float]) -> Difference:
    where = max(differences, key=lambda name: differences[name])
    return Difference(value=differences[where], where=where)
