"""`--ranks`: several processes that train one run together, launched here or by mlx.launch."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from mlxchat import __version__
from mlxchat.cli.failures import code_of
from mlxchat.cli.options import PATH
from mlxchat.cli.session import Interrupts, end_signals, exit_now
from mlxchat.cli.supervise import NO_CRASH, Forwarding
from mlxchat.config.ranks import (
    ANOTHER_ENDED,
    EXIT_CODE_FILE,
    LAUNCHER,
    SumDtype,
    backend_of_ranks,
)
from mlxchat.config.run import RunConfig
from mlxchat.errors import ConfigError, MlxchatError, NotFound
from mlxchat.home import Home
from mlxchat.json_text import parse_json
from mlxchat.system import kept_awake, own_command
from mlxchat.ui.console import close_screens, say
from mlxchat.ui.console import error as say_error

if TYPE_CHECKING:
    from mlxchat.train.stage import Stage
    from mlxchat.train.world import World

POLL = 0.1  # seconds between looks at the other ranks
LONGEST_PATIENCE = 86_400.0  # seconds
LAST_WORDS = 2.0  # seconds for the other ranks to end by themselves once rank 0 has ended
ENDING_GRACE = 10.0  # seconds for a rank to end once it was told to, or has lost another
LOCALHOST = "127.0.0.1"
BLAS_THREADS = "OPENBLAS_NUM_THREADS"

RankCount = Annotated[
    int,
    typer.Option(
        min=1,
        max=64,
        help="Number of processes on this machine that train together, usually one per "
        "GPU. Each processes its share of every step's rows.",
    ),
]
Hosts = Annotated[
    Path | None,
    typer.Option(
        help="Train on several machines: a hostfile for mlx.launch, in which this "
        "machine comes first. See docs/ranks.md.",
        show_default=False,
        **PATH,
    ),
]
RankTimeout = Annotated[
    float,
    typer.Option(
        min=1,
        max=LONGEST_PATIENCE,
        metavar="SECONDS",
        help="Stop the run if another rank does not respond for this long, which "
        "includes the time in which rank 0 saves.",
    ),
]

RankSums = Annotated[
    SumDtype,
    typer.Option(
        help="Precision in which ranks sum their gradients. bfloat16 halves the "
        "traffic, for slow links; docs/ranks.md gives its error.",
    ),
]


def launch_if_asked(
    ranks: int, hosts: Path | None, patience: float, streaming: bool = False
) -> None:
    """End with the exit code of this very command run as several ranks, if that is what was asked.

    Raises:
        typer.BadParameter: both are given, or ranks of one machine would stream into one folder.
    """
    if backend_of_ranks() or (ranks == 1 and hosts is None):
        return
    if ranks > 1 and hosts:
        raise typer.BadParameter("--ranks cannot be combined with --hosts, which names all ranks.")
    if ranks > 1 and streaming:
        raise typer.BadParameter(
            "--ranks cannot be combined with --streaming: the processes would delete each other's "
            "shards. Download them first: mlxchat data fetch"
        )
    raise typer.Exit(launch_on(hosts) if hosts else launch(ranks, patience))


def launch_on(hosts: Path) -> int:
    """Run this very command on the hosts of a file by mlx.launch, and return rank 0's exit code.

    mlx.launch itself ends with 0 whatever happens, so rank 0 writes its code into a file. A rank 0
    that is ended at once, by a second Ctrl-C or before its first step, writes none.

    Raises:
        NotFound: there is no such file.
        ConfigError: it does not name the hosts.
    """
    _check_hosts(hosts)
    program = Path(sysconfig.get_path("scripts")) / "mlx.launch"
    with tempfile.TemporaryDirectory(prefix="mlxchat-") as folder:
        result = Path(folder) / "code"
        passed = f"--env={EXIT_CODE_FILE}={result}"
        command = [str(program), "--hostfile", str(hosts), passed, "--"]
        with Forwarding(lambda: _pid_in(result)) as forwarding:
            code = forwarding.run([*command, *own_command("mlxchat", *sys.argv[1:])])
        if code_of_leader := _read(result):
            return int(code_of_leader)
    if forwarding.asked_to_end:
        return 128 + forwarding.received[0]
    say_error(
        "Rank 0 did not report how it ended.",
        "Its output is above. The first host in the hostfile must be this machine.",
    )
    return code or os.EX_SOFTWARE


def _check_hosts(hosts: Path) -> None:
    """Check that a hostfile names two hosts or more; mlx.launch checks the rest.

    Raises:
        NotFound: there is no such file.
        ConfigError: it is not a hostfile, or names fewer.
    """
    remedy = "docs/ranks.md explains its format."
    if not hosts.is_file():
        raise NotFound(f"There is no hostfile {hosts}.", remedy)
    try:
        found = parse_json(hosts.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"The hostfile {hosts} cannot be read: {error}.", remedy) from error
    named = found.get("hosts") if isinstance(found, dict) else found
    if not isinstance(named, list):
        raise ConfigError(f"The hostfile {hosts} does not contain a list of hosts.", remedy)
    if len(named) < 2:
        count = "one host" if named else "no host"
        raise ConfigError(f"The hostfile {hosts} names {count}; at least two are needed.", remedy)


def report_exit_code(code: int | None = None) -> None:
    """Write the exit code where `launch_on` looks for it, if this is its rank 0.

    Before it ends, its process number is there: mlx.launch passes no signal on.
    """
    file = os.environ.get(EXIT_CODE_FILE)
    if file and os.environ.get("MLX_RANK") == "0" and Path(file).parent.is_dir():
        _pid_file(Path(file)).write_text(str(os.getpid()))
        if code is not None:
            Path(file).write_text(str(code))


def _pid_file(result: Path) -> Path:
    return result.with_suffix(".pid")


def _pid_in(result: Path) -> int | None:
    """Return the process number of rank 0; None if it has not begun."""
    found = _read(_pid_file(result))
    return int(found) if found else None


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def launch(ranks: int, patience: float) -> int:
    """Run this very command as so many ranks, and return rank 0's exit code.

    Rank 0 has the terminal, and gets the signals; what another one says is shown if it fails.

    Args:
        ranks: processes to start.
        patience: seconds that rank 0 has to notice that another one has ended.
    """
    command = own_command("mlxchat", *sys.argv[1:])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlxchat-")))
        addresses = environment(ranks, folder)
        said = [stack.enter_context((folder / f"{rank}.txt").open("w+")) for rank in range(ranks)]
        others = [
            subprocess.Popen(
                command,
                env=os.environ | addresses | own(rank),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said[rank],
                start_new_session=True,
            )
            for rank in range(1, ranks)
        ]
        with Forwarding() as forwarding, ended_together(others, forwarding, patience) as failed:
            code = forwarding.run(command, os.environ | addresses | own(0))
        for rank in failed:
            _show(rank, others[rank - 1], said[rank])
    if code < 0 and -code not in NO_CRASH:
        return os.EX_SOFTWARE  # rank 0 crashed: `--supervise` restarts all
    return code if code >= 0 else 128 - code


def environment(ranks: int, folder: Path) -> dict[str, str]:
    """Return the variables by which the ranks find each other, as mlx.launch sets them.

    On a CPU each also gets its share of the cores: more threads than cores wait for each other.
    """
    from mlxchat.runtime import mx

    if mx.cuda.is_available():
        return {
            "MLX_WORLD_SIZE": str(ranks),
            "NCCL_HOST_IP": LOCALHOST,
            "NCCL_PORT": str(_free_ports(1)[0]),
        }
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"{LOCALHOST}:{port}"] for port in _free_ports(ranks)]))
    share = max(1, (os.cpu_count() or 1) // ranks)
    return {"MLX_HOSTFILE": str(hosts), BLAS_THREADS: os.environ.get(BLAS_THREADS, str(share))}


def own(rank: int) -> dict[str, str]:
    """Return the variables of one rank: its number, the GPU of that number, and its launcher."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    device = devices[rank] if len(devices) > rank and devices[0] else str(rank)
    launcher = str(os.getpid())
    return {"MLX_RANK": str(rank), "CUDA_VISIBLE_DEVICES": device, LAUNCHER: launcher}


def launcher_is_gone() -> bool:
    """Return whether this is a rank whose launcher has ended: nobody would see it go on."""
    return os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid())


@contextmanager
def ended_together(
    others: list[subprocess.Popen[bytes]], leader: Forwarding, patience: float
) -> Iterator[list[int]]:
    """End the other ranks after the context, and rank 0 if it outlives one that has failed.

    Yields a list, which will hold the number of the rank that failed first, unless that is rank 0.
    """
    done, failed = threading.Event(), list[int]()

    def watch() -> None:
        while not done.wait(POLL):
            failed.extend([rank for rank, each in enumerate(others, 1) if each.poll()][:1])
            if failed:
                if not done.wait(patience + ENDING_GRACE):
                    leader.kill()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield failed
    finally:
        done.set()
        watching.join()
        running = _still_running(others, LAST_WORDS)
        for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
            for process in running:
                end(process)
            running = _still_running(running, ENDING_GRACE)


def _still_running(
    processes: list[subprocess.Popen[bytes]], seconds: float
) -> list[subprocess.Popen[bytes]]:
    """Wait for processes to end; returns those that have not after so many seconds."""
    until = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    return [process for process in processes if process.poll() is None]


def _show(rank: int, process: subprocess.Popen[bytes], said: IO[str]) -> None:
    """Show why a rank failed: what it said, or the signal that ended it."""
    said.seek(0)
    lines = [line for line in said.read().splitlines() if not line.startswith("[ring]")]
    if any(ANOTHER_ENDED in line for line in lines):
        return  # only a consequence
    if process.returncode < 0:
        lines.append(f"ended by {signal.Signals(-process.returncode).name}")
    for line in lines:
        say(f"rank {rank}: {line}", sys.stderr)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOCALHOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def joined(config: RunConfig, patience: float, sums: SumDtype = "float32") -> "World":
    """Join the ranks that this process was launched with; one that was not is alone.

    Raises:
        ConfigError: the ranks were started with different settings or versions, which are named.
        DeviceError: they cannot be reached.
    """
    from mlxchat.runtime import compute_dtype
    from mlxchat.train.sharing import require_same
    from mlxchat.train.world import connect

    def give_up(error: MlxchatError) -> None:
        close_screens()
        say_error(error.problem, error.remedy)
        report_exit_code(code_of(error))
        exit_now(code_of(error))

    report_exit_code()
    given = config.model_dump(mode="json", include=config.model_fields_set)
    settings = {f"`{name}`": json.dumps(value) for name, value in given.items()}
    settings["`rank_sums`"] = sums
    with _ended_by_signals():
        world = connect(patience, give_up, compute_dtype(sums))
        require_same(world, {"mlxchat": __version__, "mlx": version("mlx"), **settings})
    return world


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let `end_signals` end the process at once within the context.

    While MLX waits for the other ranks to start, no handler and no thread of Python's runs.
    """
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in end_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def follow_run(
    kind: "type[Stage[Any, Any]]", config: RunConfig, world: "World", stay_awake: bool
) -> None:
    """Take part in a run that rank 0 leads.

    A signal here has rank 0 save and end, and so has the end of the process that started the ranks.
    """
    from mlxchat.train.ranks import follow

    with kept_awake() if stay_awake else nullcontext(), Interrupts(lambda: None) as interrupts:

        def stop() -> bool:
            return interrupts.requested() or launcher_is_gone()

        follow(kind, config, Home.from_environment(), world, stop)
