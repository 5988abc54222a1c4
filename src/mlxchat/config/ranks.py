"""The variables that make a process one of several ranks. Pure: quick to import."""

import os
from typing import Literal

RANK_PATIENCE = 300.0  # seconds in which the other ranks must answer
SumDtype = Literal["float32", "bfloat16"]  # in which the gradients of ranks are added up
VARIABLES = {  # that mlx.launch, and `mlxchat train --ranks`, set for each backend of MLX
    "nccl": "NCCL_HOST_IP",
    "jaccl": "MLX_IBV_DEVICES",
    "ring": "MLX_HOSTFILE",
    "mpi": "OMPI_COMM_WORLD_RANK",
}

EXIT_CODE_FILE = "MLXCHAT_EXIT_CODE_FILE"  # where rank 0 writes how it ended: mlx.launch says 0
LAUNCHER = "MLXCHAT_LAUNCHER"  # the number of the process that started this rank
ANOTHER_ENDED = "A rank has ended, or was cut off"


def backend_of_ranks() -> str | None:
    """Return by which of MLX's backends this process was launched; None if it is alone."""
    return next((name for name, variable in VARIABLES.items() if variable in os.environ), None)
