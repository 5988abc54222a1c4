"""The program from the outside: options, exit codes, standard output and errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.marks import slow
from support.program import Program

from mlxchat import __version__

TINY = (
    "train --dataset builtin --depth 1 --max-seq-len 32 --device-batch-size 4 "
    "--total-batch-size 256 --vocab-size 300 --model-tag tiny --eval-tokens 512"
).split()


def mlxchat(*arguments: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does; nothing here takes a minute."""
    command = [sys.executable, "-c", "from mlxchat.cli.app import main; main()", *arguments]
    options = {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, check=False, **{**options, **keywords})


def assert_two_lines(result: subprocess.CompletedProcess[str], problem: str, remedy: str) -> None:
    assert result.returncode == 1, result.stderr
    assert_problem_and_remedy(result.stderr, problem, remedy)


def assert_problem_and_remedy(errors: str, problem: str, remedy: str) -> None:
    """What is printed is one line of each."""
    first, second = errors.splitlines()
    assert first.startswith("Error: ")
    assert problem in first
    assert remedy in second


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, builtin_tokenizer: Path) -> dict[str, str]:
    """The environment of a home that holds a model of 40 steps."""
    home = tmp_path_factory.mktemp("trained")
    shutil.copytree(builtin_tokenizer, home / builtin_tokenizer.name)
    environment = {**os.environ, "MLXCHAT_HOME": str(home)}
    result = mlxchat(*TINY, "--num-iterations", "40", env=environment)
    assert result.returncode == 0, result.stderr
    assert "step 40: validation" in result.stdout
    assert "mlxchat chat --model-tag tiny" in result.stdout
    return environment


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


def test_version_prints_the_version() -> None:
    assert mlxchat("--version").stdout == f"mlxchat {__version__}\n"


def test_a_process_ends_with_the_exit_code() -> None:
    usage = mlxchat("train", "--depth", "0")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "--depth" in usage.stderr
    result = mlxchat("chat")
    assert_two_lines(result, "There is no trained model", "mlxchat quickstart")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--depth", "0"], "--depth"),
        (["train", "--depth", "deep"], "neither a number nor auto"),
        (["train", "--nonsense"], "--nonsense"),
        (["train", "--model-tag", "a/b"], "--model-tag"),
        (["train", "--model-tag=-a"], "first a letter or digit"),
        (["info", "--arch", "newest"], "'--arch': 'newest' is not one of"),
        (["info", "--target-param-data-ratio", "1e305"], "--target-param-data-ratio"),
        (["chat", "--top-p", "2"], "--top-p"),
        (["chat", "--temperature", "nan"], "--temperature"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage_errors_name_the_option(arguments: list[str], said: str, program: Program) -> None:
    code, _, errors = program(*arguments)
    assert code == 2
    assert said in errors


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["chat"], "There is no trained model", "mlxchat quickstart"),
        (["chat", "--checkpoint", "nowhere"], "There is no directory nowhere", "directory"),
        (["serve", "--port", "0"], "There is no trained model", "mlxchat quickstart"),
        (["serve", "--host", "0.0.0.0"], "--host 0.0.0.0 can be reached", "--insecure"),
        (["serve", "--host", "256.0.0.1", "--insecure"], "Cannot listen at --host", "--port"),
        (["train"], "no data", "mlxchat data fetch"),
        (["train", "--dry-run"], "no data", "mlxchat data fetch"),
        (["train", "--dry-run", "--dataset", "m", "--streaming"], "Only a dataset", "--dataset"),
        (["info", "--arch", "modern", "--head-dim", "63"], "--head-dim 63 is odd", "even"),
        (["train", "--scalar-lr", "1"], "--scalar-lr", "--arch modern"),
        (["train", "--budget", "90"], "'90' is not a duration", "1h30m"),
        (["info", "--budget", "2h", "--num-iterations", "9"], "--num-iterations 9", "one of them"),
        (["info", "--window-pattern", "SL"], "--window-pattern SL", "--arch modern"),
        (["info", "--memory-limit", "12"], "'12' is not an amount of memory", "12GB"),
        (["info", "--memory-limit", "1GB", "--depth", "20"], "needs at least", "--depth"),
        ([*TINY, "--dry-run", "--memory-limit", "900TB"], "this machine has", "--memory-limit"),
        pytest.param(
            [*TINY, "--wired-limit", "1GB"],
            "--wired-limit only works on Macs",
            "Leave it out",
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="this is one"),
        ),
        (["info", "--depth", "5"], "width of 320", "--head-dim"),
        (["train", "--dataset", "mine", "--streaming"], "Only a dataset on the hub", "--dataset"),
        (["data", "fetch", "--dataset", "mine"], "no dataset 'mine'", "--from"),
        (["data", "fetch", "--dataset", "a\nb\x1b[2J"], r"no dataset 'a\nb\x1b[2J'", "--from"),
        (["data", "fetch", "--from", "nowhere", "--dataset", "mine"], "nowhere", ""),
        (["data", "fetch", "--from", "a b.txt", "--dataset", "climbmix"], "another data", "my-a-b"),
        (["data", "fetch", "--from", "novel.txt", "--dataset", "../x"], "cannot be called", "my"),
        (["data", "fetch", "--from", "novel.txt", "--dataset", "x\n"], "cannot be called", "my"),
        (["chat", "--model-tag", "a\nb"], "no trained model", "mlxchat"),
        (["train", "--init-from", "a\nb"], "cannot be the name of a run", "--model-tag"),
        (["sft", "--source", "..", "--spelling", "9"], "cannot be the name", "--model-tag"),
        (
            [*TINY, "--total-batch-size", "100"],
            "100 tokens is not a multiple",
            "--total-batch-size",
        ),
    ],
)
def test_errors_are_two_lines(
    arguments: list[str], problem: str, remedy: str, program: Program, prepared_home: Path
) -> None:
    code, _, errors = program(*arguments)
    assert code == 1, errors
    assert_problem_and_remedy(errors, problem, remedy)


def test_a_traceback_is_shown_on_request() -> None:
    result = mlxchat("chat", env={**os.environ, "MLXCHAT_DEBUG": "1"})
    assert result.returncode == 1
    assert "Traceback" in result.stderr


HELP_TEXTS = """
import inspect, json, typer.main
from mlxchat.cli.app import app

def texts(command):
    yield command.name, inspect.cleandoc(command.help or "")
    for child in getattr(command, "commands", {}).values():
        yield from texts(child)

print(json.dumps(list(texts(typer.main.get_command(app)))))
"""


def test_the_help_is_there_without_docstrings() -> None:
    said = [
        json.loads(subprocess.check_output([sys.executable, *options, "-c", HELP_TEXTS]))
        for options in ([], ["-OO"])
    ]
    assert said[0] == said[1]
    assert all(text for _, text in said[0])


WITHOUT_OPENBLAS = """
import ctypes

class Library(ctypes.CDLL):
    def __init__(self, name, *arguments, **keywords):
        if "openblas" in str(name):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *arguments, **keywords)

ctypes.CDLL = Library

from mlxchat.cli.app import main

main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Macs have a BLAS of their own")
def test_without_openblas_there_is_one_line_of_warning() -> None:
    command = [sys.executable, "-c", WITHOUT_OPENBLAS, "info", "--depth", "1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Warning: OpenBLAS is not available (")
    assert 'pip install "mlxchat[cpu]"' in line
    json.loads(result.stdout)


def test_json_is_json_throughout(prepared_home: Path) -> None:
    result = mlxchat(*TINY, "--num-iterations", "2", "--json")
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2]
    assert events[-1]["event"] == "ended"
    assert json.loads(mlxchat("data", "status", "--json").stdout) == []


def facts(program: Program, *arguments: str) -> dict:
    """What --json says, but for what is measured."""
    code, output, errors = program(*arguments, "--json")
    assert code == 0, errors
    said = json.loads(output)
    assert said.pop("matmul_flops") > 0
    assert 0 < said.pop("memory_limit") <= said["machine_memory"]
    assert said["memory"].pop("cache") >= 0
    assert said.pop("seconds") >= 0
    assert said.pop("utilisation") > 0
    return said


@pytest.mark.parametrize("arch", ["classic", slow("modern")])
def test_info_and_a_dry_run_say_the_same_and_write_nothing(
    arch: str, home: Path, program: Program
) -> None:
    given = ["--dataset", "builtin", "--depth", "4", "--arch", arch, "--memory-limit", "least"]
    said = facts(program, "info", *given)
    assert said == facts(program, "train", "--dry-run", *given)
    assert said["plan"]["model"]["arch"] == arch
    assert said["vocabulary_from"] == "default"
    assert said["saved_step"] is None
    assert not home.exists()
    _, shown, _ = program("info", *given)
    assert f"d4: {arch}, 4 layers of width 256" in shown
    assert f"{said['plan']['parameters']:,}" in shown
    assert "at 35% of a matrix product's " in shown


@pytest.mark.slow
def test_info_of_a_budget_measures_and_says_why(program: Program) -> None:
    given = [*TINY[1:], "--depth", "auto", "--budget", "30s"]
    shown = mlxchat("info", *given)
    assert shown.returncode == 0, shown.stderr
    assert "Budget 30s: depth 2, " in shown.stdout
    assert "tokens for each of its" in shown.stdout
    made = facts(program, "info", *given)["plan"]
    assert made["costs"]["step"] * made["num_iterations"] < 30


def test_a_preset_is_printed_and_what_is_given_wins(program: Program) -> None:
    preset = ["info", "--preset", "ultra-low", "--depth", "2"]
    _, shown, _ = program(*preset, "--max-seq-len", "2048")
    assert "Preset ultra-low: --memory-limit least\n" in shown
    assert "context 2,048" in shown
    assert facts(program, *preset)["plan"]["model"]["sequence_len"] == 512


@pytest.fixture
def at_trained(
    trained: dict[str, str], program: Program, monkeypatch: pytest.MonkeyPatch
) -> Program:
    """The program within this process, in the home of `trained`."""
    monkeypatch.setenv("MLXCHAT_HOME", trained["MLXCHAT_HOME"])
    return program


def test_info_takes_the_vocabulary_from_the_tokenizer(at_trained: Program) -> None:
    info = ["info", "--dataset", "builtin"]
    assert facts(at_trained, *info)["plan"]["model"]["vocab_size"] == 300
    other = facts(at_trained, *info, "--vocab-size", "500")
    assert other["plan"]["model"]["vocab_size"] == 500
    code, _, errors = at_trained(*"train --dry-run --dataset builtin --vocab-size 500".split())
    assert code == 1
    assert_problem_and_remedy(errors, "has 300 tokens, not 500", "--vocab-size")


def test_a_dry_run_reports_the_saved_run(at_trained: Program) -> None:
    same = [*TINY, "--num-iterations", "40", "--dry-run"]
    assert facts(at_trained, *same)["saved_step"] == 40
    _, shown, _ = at_trained(*same)
    assert "newest checkpoint is step 40 of 40" in shown and "the run is finished" in shown
    assert facts(at_trained, *same, "--fresh")["saved_step"] is None
    code, _, errors = at_trained(*TINY, "--num-iterations", "41", "--dry-run")
    assert code == 1
    assert_problem_and_remedy(errors, "--num-iterations (40 -> 41)", "--fresh")


def test_text_in_another_encoding_and_without_its_bad_lines(
    tmp_path: Path, program: Program
) -> None:
    (tmp_path / "own.jsonl").write_bytes('{"text": "naïve"}\n{"text\n'.encode("latin-1") * 2)
    fetch = ("data", "fetch", "--from", str(tmp_path / "own.jsonl"))
    for options, said in (
        ((), "line 1 is not UTF-8"),
        (("--encoding", "latin-1"), "line 2 is not valid JSON"),
        (("--encoding", "no-such"), "--encoding no-such is not a known text encoding"),
    ):
        code, _, errors = program(*fetch, *options)
        assert code == 1 and said in errors
    _, made, _ = program(*fetch, "--encoding", "latin-1", "--skip-bad", "--json")
    summary = json.loads(made.splitlines()[-1])
    assert (summary["documents"], summary["skipped"]) == (2, {"is not valid JSON": 2})
    code, _, errors = program("data", "fetch", "--skip-bad")
    assert code == 2 and "only apply to your own text" in errors


@pytest.mark.slow
def test_own_text_is_fetched_and_trained_on(tmp_path: Path, program: Program) -> None:
    source = tmp_path / "novel.txt"
    source.write_text("\n\n".join(f"Chapter {i}. It was a dark night. " * 40 for i in range(30)))
    result = mlxchat("data", "fetch", "--from", str(source))
    assert result.returncode == 0, result.stderr
    assert " in 2 shards. " in result.stdout
    assert "mlxchat train --budget 1h --dataset novel" in result.stdout
    _, again, _ = program("data", "fetch", "--from", str(source), "--dataset", "other", "--json")
    assert len(json.loads(again.splitlines()[-1])["shards"]) == 2
    _, status, _ = program("data", "status")
    assert "novel" in status
    result = mlxchat(*TINY, "--dataset", "novel", "--num-iterations", "2", "--save-every", "0")
    assert result.returncode == 0, result.stderr
    assert 'sample after "The capital of France is":' in result.stdout


def test_chat_answers_a_prompt_and_standard_input(trained: dict[str, str]) -> None:
    asked = mlxchat("chat", "-p", "hello", "--max-tokens", "5", env=trained)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.endswith("\n")
    assert asked.stderr == "Loading tiny/step_000040.\n"
    again = mlxchat("chat", "-p", "hello", "--max-tokens", "5", env=trained)
    assert again.stdout == asked.stdout
    piped = {"env": trained, "input": "hello\n", "stdin": None}
    assert mlxchat("chat", "--max-tokens", "5", **piped).stdout == asked.stdout


def test_chat_answers_lines_of_json(trained: dict[str, str]) -> None:
    """Nothing else is on standard output, and one prompt gets one line."""
    sent = '{"content": "hello"}\nnonsense\n{"command": "/temperature 0"}\n'
    piped = {"env": trained, "input": sent, "stdin": None}
    shown = mlxchat("chat", "--json", "--max-tokens", "5", **piped)
    answer, mistake, done = map(json.loads, shown.stdout.splitlines())
    assert answer.keys() == {"content", "calculations", "truncated", "dropped"}
    assert "not valid JSON" in mistake["error"]["problem"]
    assert done == {"notes": ["temperature: 0.0"]}
    assert (shown.returncode, shown.stderr) == (0, "Loading tiny/step_000040.\n")
    once = mlxchat("chat", "--json", "-p", "hello", "--max-tokens", "5", env=trained)
    assert json.loads(once.stdout) == answer


def test_chat_names_the_model_or_step_that_is_missing(at_trained: Program) -> None:
    for option, value, problem, remedy in (
        ("--model-tag", "other", "other", "tiny"),
        ("--step", "7", "no checkpoint of step 7", "40"),
    ):
        code, _, errors = at_trained("chat", option, value)
        assert code == 1
        assert_problem_and_remedy(errors, problem, remedy)


def test_repeating_the_command_of_a_finished_run_says_so(trained: dict[str, str]) -> None:
    result = mlxchat(*TINY, "--num-iterations", "40", env=trained)
    assert result.returncode == 0
    assert "is finished" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), slow(signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_its_work(number: int, code: int, prepared_home: Path) -> None:
    command = [sys.executable, "-c", "from mlxchat.cli.app import main; main()", *TINY]
    process = subprocess.Popen(
        [*command, "--num-iterations", "100000", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "step" and json.loads(line)["step"] > 3:
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=60)
    events = [json.loads(line) for line in rest.splitlines()]
    assert process.returncode == code
    assert events[-1]["event"] == "ended"
    assert events[-1]["reason"] == "interrupted"
    saved = [event for event in events if event["event"] == "saved"]
    assert Path(saved[-1]["path"]).is_dir()


def test_output_into_head_ends_without_a_traceback(trained: dict[str, str]) -> None:
    program = f"{sys.executable} -c 'from mlxchat.cli.app import main; main()'"
    for command in ("--help", "data status", " ".join([*TINY, "--num-iterations", "40"])):
        result = subprocess.run(
            ["bash", "-c", f"{program} {command} | head -n 1"],
            env=trained,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Traceback" not in result.stderr
