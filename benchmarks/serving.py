"""A server under load: `mlxchat serve` beside `mlx_lm.server`, with the same model and prompts.

    python benchmarks/serving.py --depth 4 --vocab-size 4096
    python benchmarks/serving.py --depth 12 --clients 1 8 16 --programs mlxchat
    python benchmarks/serving.py --programs mlxchat --follow-up
    python benchmarks/serving.py --programs mlxchat --load 3600

A random model is written as mlxchat saves one, and each program serves that directory in a process
of its own, one after the other; mlx-lm has the BLAS that mlxchat brings, as in decoding.py. mlx-lm
computes in the type of the weights, so where mlxchat would compute in another (a GPU), they are
written in that type first. So many clients at once each ask for a number of completions one after
another, greedily, by streams; no two prompts are alike. A gap is the time between two pieces of
text, each of which is a token or two. The first request of a server is not counted. A random model
seldom ends an answer before its length; "ended early" says how many did, and the tokens are those
that the server counts.

With --follow-up, the first token of a prompt of 1,000 tokens is timed, then that of the same with
its answer and 64 tokens more: the server has read most of it. That answer has only digits, by a
bias: other text of a random model would be read as other tokens than those that were written. With
--load, eight clients ask for
answers of random lengths for so many seconds, a quarter of which they abandon, and the server's
resident memory is told: after a warm-up, and at every tenth of the time.
Needs the extras bench and serve: pip install -e ".[bench,serve]".
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import rounds
from decoding import LARGEST_VOCABULARY, SEQUENCE_LEN, random_model, tokens_of

from mlxchat.errors import MlxchatError
from mlxchat.model.config import WINDOW_PATTERNS, GPTConfig
from mlxchat.tokenizer.bpe import SMALLEST_VOCABULARY

PACKAGES = ("mlx", "mlx-lm", "starlette", "uvicorn")
COMMANDS = {
    "mlxchat": ["-m", "mlxchat", "serve", "--checkpoint"],
    # As `-m mlx_lm server`, with the BLAS that mlxchat loads.
    "mlx-lm": [
        "-c",
        "import mlxchat.runtime, mlx_lm.cli; mlx_lm.cli.main()",
        "server",
        "--log-level=ERROR",
        "--model",
    ],
}
CLIENTS = [1, 2, 4, 8, 12, 16]
PATIENCE, STOPPING = 180, 10  # seconds for a server to answer, and to end
LONG_PROMPT, ADDED = 1000, 64  # tokens, of a first turn and of the next
FIRST_ANSWER = 32  # tokens, of a first turn
DIGITS = 100  # of the prompt that tells how many of them are a token
CAST = """
import sys, mlxchat.runtime as runtime, mlx.core as mx
dtype, file = runtime.machine().compute_dtype, sys.argv[1] + "/model.safetensors"
weights, facts = mx.load(file, return_metadata=True)
if dtype != mx.float32:
    weights = {name: each.astype(dtype) for name, each in weights.items()}
    mx.eval(weights)
    mx.save_safetensors(file, weights, facts)
"""  # a program for a process of its own, so that this one leaves the device alone
LOADED_CLIENTS, ABANDONED = 8, 0.25


@dataclass(frozen=True)
class Answer:
    """The seconds from a request to each piece of its answer, its text, and numbers of tokens."""

    moments: tuple[float, ...]
    text: str
    tokens: int
    prompt_tokens: int

    @property
    def first(self) -> float:
        """Seconds to the first text."""
        if not self.moments:
            raise MlxchatError("An answer has no text.", "Try another depth or vocabulary.")
        return self.moments[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [b - a for a, b in zip(self.moments, self.moments[1:], strict=False)]


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=list(WINDOW_PATTERNS), default="classic")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--programs", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--clients", type=rounds.positive, nargs="+", default=CLIENTS, metavar="N")
    parser.add_argument("--requests-per-client", type=rounds.positive, default=2, metavar="N")
    parser.add_argument("--rounds", type=rounds.positive, default=1, help="medians are told")
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--follow-up", action="store_true", help="only time a long second turn")
    parser.add_argument("--load", type=float, metavar="SECONDS", help="only watch the memory")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not SMALLEST_VOCABULARY <= given.vocab_size <= LARGEST_VOCABULARY:
        parser.error(f"--vocab-size must be {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}")
    if given.prompt_tokens + given.max_tokens >= SEQUENCE_LEN:
        parser.error(f"a prompt and its answer must be fewer than {SEQUENCE_LEN} tokens")
    if given.arch != "classic":
        given.programs = [name for name in given.programs if name == "mlxchat"]
        if not given.programs:
            parser.error(f"the {given.arch} architecture is served by mlxchat alone")
    config = GPTConfig.from_depth(given.depth, given.vocab_size, SEQUENCE_LEN, arch=given.arch)
    measure = followed_up if given.follow_up else loaded if given.load else crowds
    found = {}
    with random_model(config) as folder:
        if "mlx-lm" in given.programs:
            subprocess.run([sys.executable, "-c", CAST, str(folder)], check=True)
        for program in given.programs:
            print(f"{program}: starting", file=sys.stderr, flush=True)
            with served(program, folder) as server:
                found[program] = measure(server, given)
    if given.json:
        print(json.dumps(everything(given, found)))
    else:
        print(
            f"{config.arch.capitalize()} d{config.n_layer}, vocabulary {config.vocab_size:,}; "
            f"{asked(given)}; "
            f"{rounds.listed(*PACKAGES)}.\n"
        )
        print(rounds.table(rows(found)))


def asked(given: argparse.Namespace) -> str:
    """What the clients ask for, in words."""
    if given.follow_up:
        return f"prompts of {LONG_PROMPT:,} tokens, then {ADDED} more"
    if given.load:
        return (
            f"{LOADED_CLIENTS} clients for {given.load:g} s, {ABANDONED:.0%} of answers abandoned"
        )
    lengths = f"prompts of {given.prompt_tokens} tokens, answers of {given.max_tokens}"
    return f"{lengths}, {given.requests_per_client} for each client; {given.rounds} round(s)"


def everything(given: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {"settings": vars(given), "versions": rounds.versions(*PACKAGES), "programs": found}


# ==== Servers and clients ========================================================================


@dataclass(frozen=True)
class Server:
    """A server that answers, and what its clients need to know."""

    url: str
    process: psutil.Process
    client: httpx.Client  # one for all: making one reads certificates, for tens of milliseconds
    digits: int = 2  # that are a token of `decoding.random_model`, if its vocabulary is large

    def prompt(self, tokens: int, source: random.Random) -> str:
        """Random digits, of so many tokens."""
        return "".join(source.choices("0123456789", k=self.digits * tokens))

    def ask(
        self,
        prompt: str,
        max_tokens: int,
        stop_after: int | None = None,
        bias: Mapping[int, float] | None = None,
    ) -> Answer:
        """Stream a completion; hang up after so many pieces if that is given.

        Raises:
            MlxchatError: the server refused.
        """
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **(
                {"logit_bias": {str(token): value for token, value in bias.items()}} if bias else {}
            ),
        }
        moments, text, usage = list[float](), "", dict[str, int]()
        begun = time.perf_counter()
        url = f"{self.url}/v1/completions"
        with self.client.stream("POST", url, json=body) as reply:
            if reply.status_code != 200:
                raise MlxchatError(f"{url} says {reply.status_code}.", reply.read().decode()[:300])
            for line in reply.iter_lines():
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line.removeprefix("data: "))
                if piece.get("usage"):
                    usage = piece["usage"]
                added = "".join(choice.get("text") or "" for choice in piece.get("choices", []))
                if added:
                    text += added
                    moments.append(time.perf_counter() - begun)
                    if len(moments) == stop_after:
                        break
        return Answer(
            tuple(moments),
            text,
            usage.get("completion_tokens", len(moments)),
            usage.get("prompt_tokens", 0),
        )


@contextmanager
def served(program: str, folder: Path) -> Iterator[Server]:
    """Run a server of the model in ``folder`` until the ``with`` block ends.

    Raises:
        MlxchatError: it ended, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *COMMANDS[program], str(folder), f"--port={port}"]
    # Not a pipe: nobody reads it, and a line for each request would fill it.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            yield answering(program, f"http://127.0.0.1:{port}", process, said)
        finally:
            process.terminate()
            try:
                process.wait(timeout=STOPPING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answering(program: str, url: str, process: subprocess.Popen[bytes], said: IO[bytes]) -> Server:
    """Wait until a server answers, which warms it up too.

    Raises:
        MlxchatError: it has ended, or does not answer in time.
    """
    client = httpx.Client(timeout=PATIENCE, limits=httpx.Limits())
    server, ends = Server(url, psutil.Process(process.pid), client), time.perf_counter() + PATIENCE
    while time.perf_counter() < ends:
        try:
            tokens = server.ask("7" * DIGITS, 16).prompt_tokens or DIGITS // 2
            return replace(server, digits=max(1, round(DIGITS / tokens)))
        except httpx.TransportError:
            time.sleep(0.2)
        if process.poll() is not None:
            said.seek(0)
            last = said.read().decode(errors="replace")[-1000:]
            raise MlxchatError(f"The server of {program} has ended.", last)
    raise MlxchatError(f"The server of {program} does not answer.", "Try a smaller model.")


# ==== What is measured ===========================================================================


def crowds(server: Server, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every number of clients at once, in rounds."""
    taken = [
        [crowd(server, clients, number, given) for clients in given.clients]
        for number in range(given.rounds)
    ]
    return [middle(each) for each in zip(*taken, strict=True)]


def crowd(
    server: Server, clients: int, round_number: int, given: argparse.Namespace
) -> dict[str, float]:
    """Let so many clients ask at once."""

    def client(number: int) -> list[Answer]:
        source = random.Random(f"{round_number} {clients} {number}")
        return [
            server.ask(server.prompt(given.prompt_tokens, source), given.max_tokens)
            for _ in range(given.requests_per_client)
        ]

    with ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        answers = [answer for each in pool.map(client, range(clients)) for answer in each]
        seconds = time.perf_counter() - begun
    firsts = [answer.first for answer in answers if answer.moments]
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {
        "clients": clients,
        "prompt_tokens": statistics.median(answer.prompt_tokens for answer in answers),
        "ended_early": sum(answer.tokens < given.max_tokens for answer in answers),
        "tokens_per_second": sum(answer.tokens for answer in answers) / seconds,
        "first_p50_ms": 1000 * share(firsts, 0.5),
        "first_p99_ms": 1000 * share(firsts, 0.99),
        "gap_p50_ms": 1000 * share(gaps, 0.5),
        "gap_p99_ms": 1000 * share(gaps, 0.99),
    }


def middle(taken: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The medians of the rounds, with every round's speed."""
    medians = {name: statistics.median(each[name] for each in taken) for name in taken[0]}
    return {**medians, "speeds": [each["tokens_per_second"] for each in taken]}


def followed_up(server: Server, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the first token of long prompts, and of the same with more at their end."""
    source = random.Random(0)
    firsts, seconds = [], []
    digits = {
        number: 100.0
        for number, token in enumerate(tokens_of(given.vocab_size))
        if token.isdigit() and len(token) == server.digits
    }
    for _ in range(1 + max(3, given.rounds)):
        long = server.prompt(LONG_PROMPT, source)
        answer = server.ask(long, FIRST_ANSWER, bias=digits)
        added = f"{long}{answer.text} {server.prompt(ADDED, source)}"
        firsts.append(answer.first)
        seconds.append(server.ask(added, FIRST_ANSWER).first)
    first, second = (1000 * statistics.median(each[1:]) for each in (firsts, seconds))
    return [{"first_turn_ms": first, "follow_up_ms": second, "first_per_follow_up": first / second}]


def loaded(server: Server, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Keep the server busy, and watch its memory."""
    asked, left, written = [[0] * LOADED_CLIENTS for _ in range(3)]
    sources = [random.Random(number) for number in range(LOADED_CLIENTS)]
    ends = time.perf_counter() + min(10.0, given.load / 10)

    def client(number: int) -> None:
        source = sources[number]
        while time.perf_counter() < ends:
            leaves = source.randrange(1, 20) if source.random() < ABANDONED else None
            length = source.randrange(8, 200)
            answer = server.ask(server.prompt(source.randrange(8, 200), source), length, leaves)
            asked[number] += 1
            left[number] += len(answer.moments) == leaves
            written[number] += answer.tokens

    def seen(tenth: int) -> dict[str, Any]:
        return {
            "tenth": tenth,
            "requests": sum(asked),
            "abandoned": sum(left),
            "tokens": sum(written),
            "resident_MB": server.process.memory_info().rss / 1e6,
        }

    with ThreadPoolExecutor(LOADED_CLIENTS) as pool:
        list(pool.map(client, range(LOADED_CLIENTS)))
        found, ends = [seen(0)], time.perf_counter() + given.load
        clients = [pool.submit(client, number) for number in range(LOADED_CLIENTS)]
        for tenth in range(1, 11):
            time.sleep(max(0.0, ends - given.load * (1 - tenth / 10) - time.perf_counter()))
            found.append(seen(tenth))
        for each in clients:
            each.result()
    return found


def share(values: Sequence[float], part: float) -> float:
    """The value that so large a part of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def rows(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """The lines of the table."""
    lines = []
    for program, measured in found.items():
        for number, each in enumerate(measured):
            line = {"program": program}
            for name, value in each.items():
                if name != "speeds":
                    whole = float(value).is_integer()
                    line[name.replace("_", " ")] = f"{value:,.0f}" if whole else f"{value:,.1f}"
            if "speeds" in each:
                line["times first"] = f"{rounds.ratio(each['speeds'], measured[0]['speeds']):.2f}"
            if "speeds" in each and {"mlxchat", "mlx-lm"} <= found.keys():
                ours, theirs = (found[name][number]["speeds"] for name in ("mlxchat", "mlx-lm"))
                line["mlxchat / mlx-lm"] = f"{rounds.ratio(ours, theirs):.2f}"
            lines.append(line)
    return lines


if __name__ == "__main__":
    rounds.explain(main)
