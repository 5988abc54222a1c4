"""Random options and damaged files for every command, and the rules that no input may break.

The template is a home with a pretrained and a fine-tuned run, a quantized model, an adapter,
exports and data. Each example copies it, damages a file or two, and runs one command with random
options in a forked process: importing MLX takes a second, a fork some milliseconds. An example
follows from its number and a seed alone, so that it can be run again by itself.
"""

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

import mlxchat.api  # noqa: F401  (before the forks, so that none of them has to load MLX)
from mlxchat.cli.app import COMMANDS, GROUPS, app, main
from mlxchat.home import Home
from support.adapted import adapter_run

EXIT_CODES = {0, 1, 2, 75}  # of the README's table; 70 needs a failing device
SIGNALLED = {130, 143}
PATIENCE = 30.0  # seconds that a command may run before it is asked to end
GRACE = 15.0  # seconds that it then has
LARGEST = 3 * 2**30  # bytes of memory
MOST_LINES = 30  # of error messages: usage errors come in a box

ESCAPED = "\x1b[31mred\x1b]0;title\x07 \x9b5m \u202eright"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CRASHES = ("Traceback (most recent call last)", "Exception ignored", "panicked at")

NUMBERS = ["-1", "0", "1", "2", "7", "64", "1.5", "nan", "inf", "-inf", "1e308", "1e-320"]
NUMBERS += ["9" * 20, "-" + "9" * 30, "9" * 5000, "1_0", " 3", "\u0663", "\u00b2", "0x10", "1e3"]
WORDS = ["", " ", "x", ".", "..", "-", "--", "a/b", "../x", "~", "~nobody/x", "a" * 300, "a" * 5000]
WORDS += [
    "line\nbreak",
    "tab\there",
    ESCAPED,
    "[red]x[/]",
    "[/]",
    "\udcff\udcfe",
    "\ufeff",
    "%s{0}",
]
PLACES = [
    "/dev/null",
    "/dev/full",
    "/nowhere/x",
    "pipe",
    "loop",
    "text.txt",
    "chats.jsonl",
    "empty",
]
JUNK = NUMBERS + WORDS + PLACES

# Values that mean something; those that would make a command run for long are left out.
MEANINGFUL = {
    "--arch": ["classic", "modern"],
    "--preset": ["test", "quick", "ultra-low"],
    "--depth": ["1", "2", "auto", "9" * 12],
    "--init-from": ["base"],
    "--budget": ["1s", "0s", "1h", "-1h", "1e9h"],
    "--window-pattern": ["L", "SSL", "sss"],
    "--config": ["settings.toml", "tuning.toml", "text.txt", "/dev/stdin", "home"],
    "--resume": ["base", "tuned", "quantized", "adapted", "..", ""],
    "--model-tag": ["base", "escape", "quantized", "adapted"],
    "--source": ["base"],
    "--onto": ["base", "tuned", "adapted"],
    "--adapter": ["adapted", "x=adapted", "=", "base=adapted"],
    "--modules": ["attn.c_q", "mlp.c_fc,lm_head", "attn.c_q,", "wte"],
    "--step": ["2", "4"],
    "--data": [
        "chats.jsonl",
        "arithmetic-2:0.01",
        "spelling-9",
        "rows.parquet",
        "rows.csv",
        "home",
    ],
    "--identity": ["name=Ada, made by=Grace, purpose=x", "name"],
    "--spelling": ["0", "2"],
    "--checkpoint": ["model", "export-mlx-lm", "export-transformers", "export-nanochat"],
    "--prompt": ["Hi", "\ud800", ESCAPED, "a " * 999],
    "--max-tokens": ["2"],
    "--bits": ["2", "4", "8"],
    "--group-size": ["32", "64"],
    "--mode": ["affine", "mxfp4"],
    "--to": ["mlx-lm", "transformers", "nanochat", "gguf", "peft"],
    "--quantize": ["4", "q8_0", "f16"],
    "--out": ["new", "new/deeper", "text.txt", "home"],
    "--dtype": ["float32", "bfloat16", "float16"],
    "--from": ["text.txt", "rows.parquet", "rows.jsonl", "rows.csv", "texts", "home"],
    "--dataset": ["builtin", "own", "fineweb-edu", "own/x"],
    "--data-dir": ["home/base_data_own", "texts"],
    "--endpoint": ["http://127.0.0.1:9", "http://me:secret@127.0.0.1:9", "ftp://x", "http://["],
    "--tokenizer": ["home", "export-nanochat"],
    "--tokenizer-dir": ["home", "model"],
    "--tasks": ["arc-easy", "gsm8k,mmlu", "humaneval", "spelling", "arithmetic-2"],
    "--task-data": ["texts", "home"],
    "--memory-limit": ["1GB", "1kb", "100TB", "auto"],
    "--wired-limit": ["1GB"],
    "--grad-checkpoint": ["auto", "on", "off"],
    "--temperature": ["0", "0.5"],
    "--interval": ["0.1"],
    "--encoding": ["utf-8", "latin-1", "utf-16", "rot13", "idna"],
    "--report": ["-", "report.md", "home"],
    "--vocab-size": ["300", "512"],
    "--max-seq-len": ["32", "64"],
}
BOUNDED = {"--num-iterations", "--epochs", "--questions", "--seconds", "--steps", "--max-chars"}
BOUNDED |= {"--target-param-data-ratio", "--num-shards", "--workers", "--eval-tokens", "--keep"}
SMALL = ["-1", "0", "1", "2", "x", "", "nan", "1.5"]
SECRET = "secret"

TRAIN = "--dataset builtin --depth 1 --max-seq-len 32 --device-batch-size 4 --total-batch-size 256"
TRAIN += " --vocab-size 300 --eval-tokens 512"
USUAL = {  # what makes a command succeed, and soon
    "train": f"{TRAIN} --num-iterations 4 --model-tag base --config settings.toml",
    "mid": "--source base --data chats.jsonl --spelling 0 --num-iterations 2",
    "sft": "--source base --data chats.jsonl --spelling 0 --num-iterations 2",
    "rl": "--source tuned --task counting --level 1 --num-iterations 1 --examples 2 --samples 2 "
    "--max-tokens 4 --eval-every 0",
    "info": "",
    "scaling": "--dataset builtin --budget 1s",  # refused at once: no ladder is over soon
    "chat": "--prompt Hi --max-tokens 4",
    "serve": "--port 0",
    "quantize": "--model-tag base --eval-tokens 512",
    "fuse": "--model-tag adapted --eval-tokens 512",
    "import": "export-transformers",
    "export": "--to mlx-lm --out new",
    "quickstart": "--questions 1",
    "bench": "--depth 1 --max-seq-len 32 --device-batch-size 4 --vocab-size 300 --steps 1 "
    "--seconds 0.1",
    "monitor": "--once",
    "doctor": "",
    "report": "base tuned",
    "help": "environment",
    "data fetch": "--from text.txt --dataset other",
    "data status": "",
    "data remove": "own --yes",
    "runs list": "",
    "runs show": "base",
    "runs compare": "base tuned",
    "runs rename": "base renamed",
    "runs copy": "base copied",
    "runs remove": "tuned --yes",
    "runs export": "base --out new",
    "tokenizer train": "--dataset own --vocab-size 300 --tokenizer-dir new --max-chars 9999",
    "checkpoints list": "",
    "checkpoints verify": "",
    "checkpoints prune": "--keep 1",
    "eval base": "--samples",
    "eval chat": "--tasks spelling --max-problems 2 --max-tokens 4",
}
LONG = {"train", "mid", "sft", "rl", "scaling", "serve", "quickstart", "bench", "monitor"}
LONG |= {"doctor"}
LONG |= {"eval base", "eval chat"}
"""Commands that may run for so long that they are asked to end."""
NOT_DRAWN = {"--ranks", "--open"}  # start processes that would outlive an example

USED = {  # the files that a command reads when it is run as in `USUAL`
    "train": [
        "settings.toml",
        "home/base_checkpoints/**/*",
        "home/tokenizer_*/*",
        "home/logs/base/*",
    ],
    "mid": ["chats.jsonl", "home/base_checkpoints/base/**/*"],
    "sft": [
        "chats.jsonl",
        "tuning.toml",
        "rows.*",
        "home/base_checkpoints/base/**/*",
        "home/*_checkpoints/**/*",
    ],
    "import": ["export-transformers/*", "export-nanochat/**/*"],
    "data fetch": ["text.txt", "rows.*", "texts/*"],
    "report": ["home/logs/**/*", "home/base_checkpoints/base/**/*"],
    "data status": ["home/base_data_own/*"],
    "runs list": ["home/*_checkpoints/**/*", "home/logs/*/*"],
    "runs show": ["home/base_checkpoints/base/**/*", "home/logs/base/*"],
    "runs compare": ["home/*_checkpoints/**/trainer.json", "home/logs/*/*"],
    "runs export": ["home/logs/base/*"],
    "tokenizer train": ["home/base_data_own/*"],
}
ENVIRONMENT = {
    "MLXCHAT_HOME": [
        "",
        "~",
        "~nobody/x",
        "x",
        "text.txt",
        "/dev/null/x",
        "line\nbreak",
        "a" * 300,
    ],
    "HOME": ["", "/nowhere", "x"],
    "HF_ENDPOINT": ["ftp://x", "http://me:secret@127.0.0.1:9", "x", "http://[::1"],
    "HF_TOKEN": ["line\nbreak", "\u0663"],
    "HF_HUB_OFFLINE": ["x", "0"],
    "NO_PROXY": ["::1", "[::1]", "10.0.0.0/8,fe80::/10", "*"],
    "HTTPS_PROXY": ["http://me:secret@127.0.0.1:9", "socks5://127.0.0.1:9", "x://y"],
    "SSL_CERT_FILE": ["/nowhere", "text.txt"],
    "COLUMNS": ["0", "1", "x", "40"],
    "TERM": ["dumb", ""],
    "LANG": ["x", "C"],
}

JUNK_JSON = [
    "",
    "null",
    "5",
    "[]",
    "{}",
    '"x"',
    "true",
    "NaN",
    '{"step": "x"}',
    '{"event": "step"}',
]
JUNK_JSON += ["[" * 200_000, '{"a":' * 200_000, "9" * 5000, "\x00", '{"a": 1', "\udcff", "{}{}"]
JUNK_VALUES: list[Any] = [None, True, -1, 0, 10**18, 10**40, 1e308, 1.5, "", "x", ESCAPED, [], {}]
JUNK_VALUES += [[[]], "\ud800", "../x", "/etc/passwd", "a" * 300, float("nan"), float("inf")]


def command_names() -> list[str]:
    """Return every command as it is typed, without the program's name."""
    return [*COMMANDS, *(f"{group} {name}" for group, (_, own) in GROUPS.items() for name in own)]


@dataclass(frozen=True)
class Example:
    """One command line in one damaged place."""

    seed: str
    command: str
    arguments: list[str]
    damage: list[str]
    environment: dict[str, str]

    def __str__(self) -> str:
        shown = ascii(shlex.join(["mlxchat", *self.command.split(), *self.arguments]))
        return f"{self.seed}: {shown[:400]} with {self.damage}, {self.environment}"


@dataclass(frozen=True)
class Result:
    """The outcome of an example. ``code`` is negative for a signal; ``peak`` is in bytes."""

    code: int
    out: str
    err: str
    peak: int
    seconds: float
    asked: bool  # to end, by SIGTERM

    def fault(self, example: Example) -> str | None:
        """Return the rule that was broken, if one was."""
        text = self.out + self.err
        allowed = EXIT_CODES | SIGNALLED if self.asked else EXIT_CODES
        if self.code not in allowed:
            return f"exit code {self.code}"
        if self.asked and example.command not in LONG:
            return f"did not end within {self.seconds:.0f} s"
        for crash in CRASHES:
            if crash in text:
                return crash
        if unsafe := UNSAFE.search(text):
            return f"prints {unsafe.group()!r}"
        if SECRET in text:
            return "prints a password"
        if self.code == 1 and not self.err.strip() and not example.command.startswith("check"):
            return "exit code 1 without an error message"
        if len(self.err.splitlines()) > MOST_LINES and not self.asked:
            return f"{len(self.err.splitlines())} lines of errors"
        if self.peak > LARGEST:
            return f"{self.peak / 2**30:.1f} GiB of memory"
        if self.code == 0 and "--json" in example.arguments and not _is_json(self.out):
            return "--json prints something else"
        return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        try:
            return all(json.loads(line) is not None for line in text.splitlines())
        except ValueError:
            return False
    return True


def run_forked(
    work: Callable[[], object],
    place: Path,
    patience: float,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Run a function in a forked process whose working directory is ``place``."""
    out, err = place / ".out", place / ".err"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_run_child(work, place, out, err, environment))
    asked = False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        lasted = time.monotonic() - started
        if ended:
            break
        if lasted > patience + GRACE:
            os.killpg(child, signal.SIGKILL)
        elif lasted > patience and not asked:
            asked = True
            os.kill(child, signal.SIGTERM)
        time.sleep(0.002 if lasted < 1 else 0.02)
    code = os.waitstatus_to_exitcode(status)
    texts = [path.read_bytes().decode("utf-8", "backslashreplace") for path in (out, err)]
    return Result(code, texts[0], texts[1], usage.ru_maxrss * 1024, lasted, asked)


def _run_child(
    work: Callable[[], object], place: Path, out: Path, err: Path, environment: Mapping[str, str]
) -> int:
    os.setsid()
    os.chdir(place)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.update(HOME=str(place), MLXCHAT_HOME=str(place / "home"), HF_HUB_OFFLINE="1")
    os.environ.update(WANDB_MODE="offline", TRACKIO_DIR=str(place / "trackio"))
    os.environ.update(environment)
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  (what Python does with it)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code & 0xFF


def program(*arguments: str) -> Callable[[], object]:
    """Return a function that runs ``mlxchat`` with these arguments."""

    def run() -> None:
        sys.argv = ["mlxchat", *arguments]
        main()

    return run


def make_template(place: Path) -> Path:
    """Fill a folder with a home that has runs of both stages, exports of them, and data.

    Raises:
        AssertionError: a command that makes a part of it failed.
    """
    texts = [f"The {i}th fox runs from the {i % 7}th dog, it says." for i in range(300)]
    (place / "text.txt").write_text("\n\n".join(texts))
    (place / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (place / "rows.csv").write_text("text,label\n" + "".join(f'"{t}",1\n' for t in texts))
    (place / "texts").mkdir()
    (place / "texts" / "one.txt").write_text(texts[0])
    (place / "texts" / "two.md").write_text(texts[1])
    (place / "empty").write_text("")
    turns = [[_turn("user", f"{i}?"), _turn("assistant", t)] for i, t in enumerate(texts)]
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in turns)
    (place / "chats.jsonl").write_text(lines)
    pq.write_table(pa.table({"text": texts, "messages": turns}), place / "rows.parquet")
    (place / "settings.toml").write_text("keep = 2\nsave_every = 2\n")
    (place / "tuning.toml").write_text('data = ["chats.jsonl"]\nkeep = 2\n[lora]\nrank = 2\n')
    for line in (
        "data fetch --from text.txt --dataset own",
        f"train {USUAL['train']} --sample-every 0 --save-every 2 --keep 2",
        f"sft {USUAL['sft']} --sample-every 0 --model-tag tuned",
        "quantize --model-tag base --eval-tokens 512",
        "export --to mlx-lm --model-tag base --out export-mlx-lm",
        "export --to transformers --model-tag tuned --out export-transformers",
        "export --to nanochat --model-tag tuned --out export-nanochat",
    ):
        made = run_forked(program(*line.split()), place, 120)
        assert made.code == 0, f"{line}: {made.err}"
    [model] = (place / "home").glob("chatsft_checkpoints/tuned/step_*")
    shutil.copytree(model, place / "model")
    home = Home(place / "home")
    put = run_forked(lambda: adapter_run(home, model, "adapted"), place, 120)
    assert put.code == 0, put.err
    return place


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def make_example(command: str, seed: str, place: Path) -> Example:
    """Draw the options of a command and the damage, and do that damage to ``place``."""
    draw = random.Random(seed)
    arguments = USUAL[command].split() if draw.random() < 0.8 else []
    options = _options(command)
    for option in draw.choices(options, k=draw.choice([0, 0, 1, 1, 2, 3])) if options else ():
        arguments += [option.opts[0]] if option.is_flag else _value(draw, option)
    if draw.random() < 0.05:
        arguments.append(draw.choice([*JUNK, "--nonsense", "-z", "--depth"]))
    damage = [_damage(draw, place, command) for _ in range(draw.choice([0, 1, 1, 2]))]
    _add_strange_files(place)
    changed = draw.sample(sorted(ENVIRONMENT), draw.choice([0, 0, 0, 1]))
    environment = {name: draw.choice(ENVIRONMENT[name]) for name in changed}
    return Example(seed, command, arguments, damage, environment)


def _options(command: str) -> list[Any]:
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    options = [each for each in found.params if each.param_type_name == "option"]
    return [each for each in options if not NOT_DRAWN.intersection(each.opts)]


def _value(draw: random.Random, option: Any) -> list[str]:
    name = option.opts[0]
    pool = JUNK if name not in BOUNDED else SMALL
    if name in MEANINGFUL and draw.random() < 0.5:
        pool = MEANINGFUL[name]
    return [name, draw.choice(pool)]


def _add_strange_files(place: Path) -> None:
    os.mkfifo(place / "pipe")
    (place / "loop").symlink_to("loop")


def _damage(draw: random.Random, place: Path, command: str) -> str:
    """Damage one file below ``place``, often one that matters, and return what was done."""
    patterns = USED.get(command, ["home/*_checkpoints/**/*", "home/logs/**/*"])
    used = [p for pattern in patterns for p in place.glob(pattern)]
    found = used if draw.random() < 0.8 else place.rglob("*")
    files = sorted(p for p in found if p.is_file() and not p.name.startswith("."))
    if not files:
        return "none"
    path = draw.choice(files)
    name = str(path.relative_to(place))
    kind = draw.choice(["bytes", "field", "field", "line", "junk", "other", "rename"])
    if kind == "rename":
        above = draw.choice([path, *path.parents[: len(Path(name).parents) - 1]])
        to = above.with_name(draw.choice([ESCAPED, "[red]", "x\ny", "x"]))
        if not to.exists():
            above.rename(to)
        return f"{above.relative_to(place)} is {to.name!a}"
    if kind == "other":
        path.unlink()
        what = draw.choice(["gone", "pipe", "loop", "folder", "endless", "empty"])
        _put(what, path)
        return f"{name} is {what}"
    content = path.read_bytes()
    changed = _changed(draw, kind, content)
    path.write_bytes(changed)
    return f"{name}: {kind}"


def _put(what: str, path: Path) -> None:
    if what == "pipe":
        os.mkfifo(path)
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "folder":
        path.mkdir()
    elif what == "endless":
        path.symlink_to("/dev/zero")
    elif what == "empty":
        path.touch()


def _changed(draw: random.Random, kind: str, content: bytes) -> bytes:
    junk = draw.choice(JUNK_JSON).encode("utf-8", "surrogateescape")
    if kind == "junk":
        return junk
    if kind == "line":
        lines = content.splitlines(keepends=True)
        lines.insert(draw.randint(0, len(lines)), junk + b"\n")
        return b"".join(lines)
    if kind == "field":
        lines = content.splitlines() if content.count(b"}\n{") else [content]
        place = draw.randrange(len(lines)) if lines else 0
        try:
            value = json.loads(lines[place])
        except (ValueError, IndexError):
            return _with_other_bytes(draw, content)
        lines[place] = json.dumps(_with_other_field(draw, value)).encode()
        return b"\n".join(lines) + b"\n"
    return _with_other_bytes(draw, content)


def _with_other_field(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if draw.random() < 0.1:
            return {**value, draw.choice(["x", ESCAPED]): value[key]}
        return {**value, key: _with_other_field(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], _with_other_field(draw, value[place]), *value[place + 1 :]]
    return draw.choice(JUNK_VALUES)


def _with_other_bytes(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        start = draw.choice([0, 8, draw.randrange(len(changed) + 1)])  # headers matter most
        length = draw.choice([1, 4, 64])
        changed[start : start + draw.choice([0, length])] = draw.randbytes(length)
    return bytes(changed[: draw.choice([len(changed)] * 3 + [len(changed) // 2])])


def examples(
    template: Path, scratch: Path, seed: int, numbers: Iterable[int], patience: float = PATIENCE
) -> Iterator[tuple[Example, Result]]:
    """Run the examples of these numbers, each in a copy of the template of its own."""
    names = command_names()
    for number in numbers:
        place = scratch / "place"
        shutil.copytree(template, place, symlinks=True)
        example = make_example(names[number % len(names)], f"{seed}/{number}", place)
        run = program(*example.command.split(), *example.arguments)
        yield example, run_forked(run, place, patience, example.environment)
        shutil.rmtree(place)
