"""Checks of what MLX computes: products, rotation, attention, decoding."""

from mlxchat.counts import flops_per_second, round_size
from mlxchat.doctor.check import (
    COMPUTING,
    DECODING,
    TRAINING,
    Check,
    Verdict,
    doubtful,
    good,
    with_mlx,
    wrong,
)
from mlxchat.doctor.host import Host
from mlxchat.doctor.probes import BACKWARD, DECODED, PRODUCTS, ROTATION, ROUNDINGS

SLOW_CPU = 10e9  # FLOP/s; OpenBLAS exceeds it on one core, the reference BLAS does not
MUCH_FASTER = 1.25  # times as fast in one precision as in another
LARGEST_ROUNDING = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2}  # TF32 is within it
TF32_ROUNDING = 2e-5  # above it, float32 products are rounded to fewer bits
LARGEST_ROTATION = 1e-5
LARGEST_ATTENTION = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
SLOWER = 1.25  # times as slow fused as unfused
LARGEST_DECODED = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
UNFUSED = {"MLX_SDPA_VJP_FALLBACK": "1", "MLX_CUDA_USE_CUDNN_SDPA": "0"}  # Metal's, CUDA's

DO_NOT_TRUST = (
    "Do not trust models trained on this machine. Update MLX: pip install -U mlx. If that does "
    "not help, report it, and include this command's report."
)


def _products(host: Host) -> Verdict:
    device, speeds = host.device(), host.measure(PRODUCTS)
    assert device is not None
    value = ", ".join(f"{name} {flops_per_second(speed)}" for name, speed in dict(speeds).items())
    used = dict(speeds)[device.compute_dtype]
    if device.backend == "cpu":
        if used < SLOW_CPU:
            return doubtful(
                value,
                "Either other programs keep the processor busy, or the BLAS library is slow.",
                "Close other programs, and see BLAS above.",
            )
        return good(value, "On CPUs, mlxchat computes in float32.")
    other = "float32" if device.compute_dtype == "bfloat16" else "bfloat16"
    ratio = dict(speeds)[other] / used
    if ratio > MUCH_FASTER:
        return doubtful(
            value,
            f"mlxchat computes in {device.compute_dtype} here, and {other} is {ratio:.1f} times as "
            "fast.",
            f"Train with `dtype={other}`.",
        )
    if speeds.float16 > MUCH_FASTER * used:
        return good(
            value, "Chats are faster with `dtype=float16`, which cannot be used for training."
        )
    return good(value, f"mlxchat computes in {device.compute_dtype} here.")


def _rounding(host: Host) -> Verdict:
    roundings = dict(host.measure(ROUNDINGS))
    value = ", ".join(f"{name} {error:.0e}" for name, error in roundings.items())
    bad = [name for name, error in roundings.items() if not error <= LARGEST_ROUNDING[name]]
    if bad:
        return wrong(value, f"Products in {' and '.join(bad)} are wrong.")
    if roundings["float32"] > TF32_ROUNDING:
        return good(value, "float32 products are rounded to TF32, unless MLX_ENABLE_TF32=0.")
    return good(value)


def _rotation(host: Host) -> Verdict:
    found = host.measure(ROTATION)
    if not found.value <= LARGEST_ROTATION:
        return wrong(f"{found.value:.1e}", f"It is largest in the {found.where}.")
    return good(f"{found.value:.1e}")


def _attention(host: Host) -> Verdict:
    fused = host.measure(BACKWARD)
    largest = LARGEST_ATTENTION[fused.dtype]
    value = f"{1000 * fused.seconds:,.1f} ms, {round_size(fused.peak)}"
    if not fused.difference <= largest:
        return wrong(value, f"Its relative error is {fused.difference:.1e}.")
    off = f"Its relative error is {fused.difference:.1e}."
    device = host.device()
    if device and device.backend == "cpu":
        return good(value, f"{off} There is no fused kernel on CPUs.")
    unfused = host.measure(BACKWARD, UNFUSED)
    ratio = fused.seconds / unfused.seconds
    value = f"{value} fused; {1000 * unfused.seconds:,.1f} ms, {round_size(unfused.peak)} not"
    if not unfused.difference <= largest:
        off += f" Unfused, its relative error is {unfused.difference:.1e}."
    if ratio > SLOWER:
        return doubtful(value, f"Fused takes {ratio:.2f} times as long as unfused. {off}")
    return good(value, f"Fused takes {ratio:.2f} times as long as unfused. {off}")


def _decoding(host: Host) -> Verdict:
    device, found = host.device(), host.measure(DECODED)
    assert device is not None
    if not found.value <= LARGEST_DECODED[device.compute_dtype]:
        return wrong(f"{found.value:.1e}", f"The logits' error is largest {found.where}.")
    return good(f"{found.value:.1e}")


def _limits(largest: dict[str, float]) -> str:
    return "at most " + ", ".join(f"{value:g} in {name}" for name, value in largest.items())


ARITHMETIC_CHECKS = (
    Check(
        name="products",
        measures="The speed of matrix products, which dominate training, in three precisions.",
        limit=(
            f"at least {SLOW_CPU / 1e9:g} GFLOP/s; on a GPU the faster of bfloat16 and float32 is "
            "used"
        ),
        remedy="Close other programs and run the check again.",
        commands=COMPUTING,
        examine=_products,
        absent=with_mlx,
    ),
    Check(
        name="rounding",
        measures="The error of matrix products compared with float64, relative to their norm.",
        limit=_limits(LARGEST_ROUNDING),
        remedy=DO_NOT_TRUST,
        commands=COMPUTING,
        examine=_rounding,
        absent=with_mlx,
    ),
    Check(
        name="rotation",
        measures="The error of the compiled rotary embedding and its gradient compared "
        "with numpy's.",
        limit=f"at most {LARGEST_ROTATION:g}",
        remedy=DO_NOT_TRUST,
        commands=COMPUTING,
        examine=_rotation,
        absent=with_mlx,
    ),
    Check(
        name="attention",
        measures="Time, memory and error of attention, forward and backward, fused and unfused.",
        limit=f"fused at most {SLOWER:g} times as long; off {_limits(LARGEST_ATTENTION)}",
        remedy="If memory allows, train with MLX_SDPA_VJP_FALLBACK=1 in the environment.",
        commands=TRAINING,
        examine=_attention,
        absent=with_mlx,
    ),
    Check(
        name="decoding",
        measures=(
            "The error of tokens decoded one by one past 1,100 positions, compared with one pass "
            "over all of them."
        ),
        limit=_limits(LARGEST_DECODED),
        remedy=DO_NOT_TRUST,
        commands=DECODING,
        examine=_decoding,
        absent=with_mlx,
    ),
)
