"""Commands in the documentation exist, with their options, values and scripts."""

import re
from pathlib import Path

import pytest
from support.command_lines import arguments, inline_code, options, parse, shell_commands

from mlxchat.config.serve import API_KEY

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
SCRIPT = re.compile(r"(?:benchmarks|docs)/\w+\.py")
OTHERS = {  # options of other programs
    *("--extra", "--trust-remote-code", "--adapter-path", "--model", "--hostfile"),
    *("--logdir", "--project"),
}


def by_name(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_in_blocks_can_be_typed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are parsed as the program would, and their settings made and checked."""
    monkeypatch.setenv(API_KEY, "a key that clients send".replace(" ", "-"))
    for words in shell_commands(page.read_text("utf-8")):
        given = arguments(words)
        if given is not None:
            try:
                parse(given)
            except Exception as error:  # noqa: BLE001  (whatever a command line can raise)
                pytest.fail(f"mlxchat {' '.join(given)}: {error!r}")


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_options_in_the_text_exist(page: Path) -> None:
    known = options() | script_options() | OTHERS
    named = {
        option
        for code in inline_code(page.read_text("utf-8"))
        if not code.startswith(("python ", "pip ", "pytest ", "mkdocs "))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)
    }
    assert sorted(named - known) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_scripts_exist_with_their_options(page: Path) -> None:
    text = page.read_text("utf-8")
    commands = [" ".join(words) for words in shell_commands(text)] + inline_code(text)
    known = script_options()
    for command in commands:
        for script in SCRIPT.findall(command):
            assert (ROOT / script).is_file(), f"{command}: there is no such script"
        if command.startswith("python "):
            named = set(re.findall(r"(?<![\w=\"'-])--[a-z][a-z0-9-]*", command))
            assert sorted(named - known - options()) == [], command


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_extras_that_are_to_be_installed_exist(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    declared = project.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    extras = set(re.findall(r"^(\w+) = \[", declared, re.MULTILINE))
    text = page.read_text("utf-8")
    named = {name for each in re.findall(r'"\.\[([\w,]+)\]"', text) for name in each.split(",")}
    named |= set(re.findall(r"--extra (\w+)", text))
    assert named <= extras


def script_options() -> set[str]:
    """The options that the scripts declare."""
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*.py")]
    texts = [script.read_text("utf-8") for script in scripts]
    return {option for text in texts for option in re.findall(r"\"(--[a-z][a-z0-9-]*)\"", text)}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("mlxchat trian --depth 4", "trian"),
        ("mlxchat train --dephth 4", "--dephth"),
        ("mlxchat train --depth four", "four"),
        ("mlxchat train --depth 100", "100"),
        ("mlxchat train --scalar-lr 0.5", "scalar_lr"),
        ("mlxchat chat  # the model saved last", "extra argument"),
        ("A=1 mlxchat data fetch --form x && true", "--form"),
        ("uv run --extra cpu mlxchat export --to nowhere", "nowhere"),
    ],
)
def test_a_wrong_command_is_found(line: str, wrong: str) -> None:
    [first, *_] = shell_commands(f"```\n{line}\n```\n")
    given = arguments(first)
    assert given is not None
    with pytest.raises(Exception, match=re.escape(wrong)):
        parse(given)


def test_commands_are_found_behind_others() -> None:
    lines = ("echo hi | mlxchat chat --seed \\", "3 && pip uninstall mlxchat", "$ mlxchat bench")
    text = "\n".join(("```", *lines, "```", ""))
    found = [arguments(words) for words in shell_commands(text)]
    assert found == [None, ["chat", "--seed", "3"], None, ["bench"]]
