"""Checks of the GPU: what MLX sees of it, and whether it may work without a pause."""

from mlxchat.counts import round_size
from mlxchat.doctor.check import (
    COMPUTING,
    TRAINING,
    Check,
    Verdict,
    doubtful,
    good,
    with_cuda,
    with_gpu,
    with_mlx,
    wrong,
)
from mlxchat.doctor.host import Host
from mlxchat.doctor.probes import LOAD

LEAST_GPU_MEMORY = 4 * 10**9
LONGEST_WORK = 2.0  # seconds; the system ends what holds its GPU for five


def _gpu(host: Host) -> Verdict:
    device = host.device()
    assert device is not None
    value = f"{device.name}, {device.backend}"
    if device.backend == "cpu" and host.has_nvidia_gpu():
        return wrong(value, "This machine has an NVIDIA GPU, but MLX computes on the CPU.")
    if device.backend == "cpu" and host.system() == "Darwin":
        return wrong(value, "This Mac's GPU cannot be used: Metal does not respond.")
    if device.backend == "cpu":
        return good(value, "MLX finds no GPU that it supports.")
    value += f", {round_size(device.memory)}"
    largest = round_size(device.largest_buffer)
    bounds = (
        f"A single array may have up to {largest}, and {device.buffers:,} arrays may "
        "exist at a time."
    )
    detail = bounds if device.largest_buffer else ""
    if "Paravirtual" in device.name:
        return doubtful(value, f"This is the GPU of a virtual machine. {detail}")
    if device.memory < LEAST_GPU_MEMORY:
        return doubtful(value, f"Only small models fit into its memory. {detail}")
    return good(value, detail)


def _watchdog(host: Host) -> Verdict:
    load = host.measure(LOAD)
    value = f"{load.seconds:.1f} s, {1000 * load.longest:,.0f} ms at most at a time"
    if load.longest > LONGEST_WORK:
        return doubtful(value, "Work this long can trigger the system's watchdog.")
    return good(value)


def _nccl(host: Host) -> Verdict:
    device = host.device()
    assert device is not None
    if not device.nccl:
        return doubtful("missing", "Several GPUs could not work together.")
    return good("there", "mlxchat itself uses one GPU.")


def _ways(host: Host) -> Verdict:
    device = host.device()
    assert device is not None
    if not device.fastest_ways:
        return good("none measured yet", "They are measured by the first training run or chat.")
    detail = "; ".join(f"{choice.question}: {choice.answer}" for choice in device.fastest_ways)
    unsound = sum(not choice.sound for choice in device.fastest_ways)
    if unsound:
        return doubtful(f"{unsound:,} of {len(device.fastest_ways):,} with one that fails", detail)
    return good(f"{len(device.fastest_ways):,} measured", detail)


DEVICE_CHECKS = (
    Check(
        name="GPU",
        measures="The device that MLX computes on, and its memory.",
        limit=f"the GPU, if there is one, with at least {LEAST_GPU_MEMORY // 10**9} GB",
        remedy=(
            'With an NVIDIA GPU, install its backend: pip install "mlxchat[cuda]". On a Mac, log '
            "in on its screen or over SSH: programs outside a login session may see no GPU."
        ),
        commands=COMPUTING,
        examine=_gpu,
        absent=with_mlx,
    ),
    Check(
        name="fastest variants",
        measures=(
            "Where several implementations compute the same thing, the one that was fastest here. "
            "One that fails or is wrong is not used."
        ),
        limit="none fails",
        remedy="Results are right, only slower. Please report it, with the message above.",
        commands=(),
        examine=_ways,
        absent=with_mlx,
    ),
    Check(
        name="watchdog",
        measures=(
            "Whether the system lets the GPU work for some seconds without a pause. macOS may "
            "stop such work while a display is on."
        ),
        limit=f"at most {LONGEST_WORK:g} s at a time, and never stopped",
        remedy=(
            "Let the display sleep, or use the machine over SSH, while it computes; train with "
            "`supervise`."
        ),
        commands=TRAINING,
        examine=_watchdog,
        absent=with_gpu,
    ),
    Check(
        name="NCCL",
        measures="Whether the library loads that lets several NVIDIA GPUs work together.",
        limit="there",
        remedy='Reinstall it: pip install -U "mlx[cuda13]".',
        commands=(),
        examine=_nccl,
        absent=with_cuda,
    ),
)
