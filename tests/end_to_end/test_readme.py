"""The commands of README.md, run one after another in a fresh home.

Every line of its blocks is given to a shell as it stands, except that

- what would take long is shortened by `SHORTER`, and ``quickstart`` trains for 6 steps and asks 4
  questions;
- ``pip`` and ``uv`` install nothing, and what they are to start is this checkout's mlxchat;
- ``data fetch`` asks a hub on this machine, whose shards are small;
- `NOT_RUN` says which lines are left out, and why.

``chats.jsonl``, ``~/novels`` and a checkpoint of nanochat's are there, because the README takes
them for the reader's. Python in the README runs in tests/test_docs.py, and the options of all
commands are checked in tests/test_docs_commands.py.
"""

import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from support.command_lines import FENCED, SHELL
from support.places import REPOSITORY
from support.readme_shell import hub, prepare

pytestmark = pytest.mark.slow

SMALL = (
    "--depth 1 --vocab-size 400 --max-seq-len 128 --device-batch-size 2 --total-batch-size 256 "
    "--num-iterations 3 --eval-tokens 256 --sample-every 0"
)
SHORTER = (  # each replaces what is to its left in a line
    (r"^(mlxchat train )(--budget \w+)$", rf"\1\2 --dry-run && \1{SMALL}"),
    (r"^(mlxchat train --dataset novels )--budget \w+", rf"\1{SMALL}"),
    (r"^(mlxchat train --depth 12.*)$", r"\1 --dry-run"),
    (r"--num-iterations \d\d+", "--num-iterations 2"),
    (r"^(mlxchat rl .*)$", r"\1 --eval-every 0"),
    (r"^(mlxchat sft --data chats.jsonl.*)$", r"\1 --num-iterations 3"),
)
NOT_RUN = {
    "python3 -m venv .venv && source .venv/bin/activate": "the tests have an environment",
}
SERVER = "mlxchat serve"
ASKED = "What does a cow say?\n"
SECONDS = 900  # for one command, on a machine that has much else to do


def lines() -> list[str]:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    blocks = [block for language, block in FENCED.findall(text) if language in SHELL]
    return [line for block in blocks for line in block.splitlines() if line]


def shorter(line: str) -> str:
    for long, short in SHORTER:
        line = re.sub(long, short, line)
    return line


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    environment = prepare(tmp_path)

    def run(line: str) -> None:
        """Give a line to a shell; the test fails if the line does."""
        begun = time.monotonic()
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, input=ASKED, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS,
        )  # fmt: skip
        print(f"{time.monotonic() - begun:5.1f} s  {line}")
        assert done.returncode == 0, f"{line}\n{done.stdout}"

    with hub(tmp_path / "hub") as endpoint:
        environment["HF_ENDPOINT"] = endpoint
        for line in lines():
            if line in NOT_RUN:
                continue
            if line == SERVER:
                answers_until_interrupted(environment, tmp_path)
                continue
            run(shorter(line))


def answers_until_interrupted(environment: dict[str, str], folder: Path) -> None:
    """Start the server, get its page and its models, and end it as Ctrl-C does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*SERVER.split(), "--port", str(port)]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            for path, expected in (("/", "<html"), ("/v1/models", "mlxchat")):
                assert expected in got(f"http://127.0.0.1:{port}{path}", server)
        finally:
            server.send_signal(signal.SIGINT)
        server.communicate(timeout=SECONDS)
    assert server.returncode in (0, 130)


def got(address: str, server: "subprocess.Popen[str]") -> str:
    """Return what an address answers, as soon as it does."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=SECONDS) as answer:
                return str(answer.read().decode())
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)


def test_what_is_not_run_or_shortened_is_in_the_readme() -> None:
    assert set(lines()) >= {*NOT_RUN, SERVER}
    for long, _ in SHORTER:
        assert any(re.search(long, line) for line in lines()), long
