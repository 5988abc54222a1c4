"""Helpers that make the runs in `golden/runs` and compare with them.

The files are read without mlxchat, so that a change in its readers cannot hide.
"""

import ctypes
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

SAMPLED = 8  # values of each tensor, evenly spaced
CPU = ("vendor_id", "cpu family", "model", "model name", "stepping")


def environment() -> dict[str, Any]:
    """All that must match for results to be equal bit for bit.

    Import `mlxchat.runtime` first: it loads OpenBLAS.
    """
    cpuinfo, cpu = Path("/proc/cpuinfo"), {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in CPU:
            cpu[key.strip()] = value.strip()
    return {
        "cpu": cpu,
        "openblas": _openblas("openblas_get_config", ctypes.c_char_p),
        "threads": _openblas("openblas_get_num_threads", ctypes.c_int),
        "libc": " ".join(platform.libc_ver()),
        "mlx": version("mlx"),
    }


def _openblas(name: str, kind: Any) -> str | int | None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        return None
    function.restype = kind
    found = function()
    return found.decode() if isinstance(found, bytes) else found


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    weights = {}
    for name, entry in sorted(header.items()):
        assert entry["dtype"] == "F32", name
        start, end = entry["data_offsets"]
        weights[name] = np.frombuffer(body[start:end], "<f4").reshape(entry["shape"])
    return weights


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """One hash of all names, shapes and bits."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.shape}".encode() + value.tobytes())
    return found.hexdigest()


def outline(weights: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Each tensor's norm and a few of its values, to compare approximately on other machines."""
    return {
        name: [float(np.linalg.norm(value)), *map(float, _sample(value))]
        for name, value in sorted(weights.items())
    }


def _sample(value: np.ndarray) -> np.ndarray:
    places = np.linspace(0, value.size - 1, min(SAMPLED, value.size)).astype(int)
    return value.reshape(-1)[places]
