"""Figures in the documentation that can be computed are what the code computes."""

import importlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from support.places import REPOSITORY

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.recipes import scale_for
from mlxchat.config.rl import RlConfig
from mlxchat.config.serve import ServeConfig
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import parameters

MOST_LINES = 250  # of the README, which is to be read


def text(name: str) -> str:
    return (REPOSITORY / name).read_text("utf-8")


def words(name: str) -> str:
    """A page on one line."""
    return " ".join(text(name).split())


@pytest.fixture(scope="module")
def machines() -> Iterator[ModuleType]:
    """The script of the derived rows."""
    folder = str(REPOSITORY / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("machines")
    sys.path.remove(folder)


def test_the_readme_is_short() -> None:
    assert len(text("README.md").splitlines()) <= MOST_LINES


def test_tables_of_memory_by_machine_are_those_of_the_script(
    machines: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    machines.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    derived = [row for row in rows if not row.startswith(("| Mac", "| ---", "| memory", "| depth"))]
    page = text("MEMORY.md").splitlines()
    missing = [row for row in derived if "vocabulary" not in row and row not in page]
    assert missing == []
    assert len(derived) == 4 * len(machines.LIMITS) - 1  # four depths have one row fewer


def test_models_for_macs_are_those_of_the_script(machines: ModuleType) -> None:
    """MEMORY.md has all Macs, the README some of them, each with a budget that suits it."""
    found = 0
    for page in ("MEMORY.md", "README.md"):
        for memory, chip, budget, rest in re.findall(
            r"^\| Mac, (\d+) GB \((.+)\) \| `mlxchat train --budget (\w+)` \|(.*)$",
            text(page),
            re.MULTILINE,
        ):
            limit = machines.LIMITS[int(memory)]
            chosen = machines.choices(int(memory), limit)[f"train --budget {budget}"]
            layers, width, tokens, peak = re.findall(r"[\d.,]+(?= x|, vocab| mill| GB)", chosen)
            assert chip == machines.CHIPS[int(memory)]
            assert f"{layers} x {width}" in rest or f"width {width}" in rest or "same size" in rest
            assert f" {tokens} million tokens" in rest
            assert f" {peak} GB" in rest
            found += 1
    assert found == len(machines.LIMITS) + 3


def test_the_horizon_of_depth_4_in_the_first_hour() -> None:
    config = PretrainConfig(depth=4)
    model = GPTConfig.from_depth(4, config.numbers.vocabulary, config.max_seq_len)
    tokens = config.numbers.target_param_data_ratio * sum(parameters(model).values())
    assert f"nanochat does, {tokens / 1e6:.0f} million tokens" in words("docs/first-hour.md")


def test_the_parameters_and_tokens_of_nanochats_d12() -> None:
    model = GPTConfig.from_depth(12, PretrainConfig().numbers.vocabulary, 2048)
    count = sum(parameters(model).values())
    assert f"nanochat's d12, {count / 1e6:.0f} million parameters" in text("README.md")
    assert f"12 x 768, {20 * count / 1e9:.1f} billion tokens" in text("MEMORY.md")


def test_the_table_of_the_budget_recipe() -> None:
    rows = re.findall(
        r"^\| (?:below (\d+) million|(more)) \|.*\| ([\d,]+) \| ([\d,]+) \| .* \|$",
        text("docs/recipes.md"),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for below, more, vocabulary, context in rows:
        scale = scale_for(1e9 if more else float(below) * 1e6 - 1)
        assert (f"{scale.vocabulary:,}", f"{scale.context:,}") == (vocabulary, context)


def test_defaults_that_pages_name_are_the_settings() -> None:
    rl, serve = RlConfig(), ServeConfig()
    assert f"the next {rl.examples} questions" in words("docs/rl.md")
    assert f"draws {rl.samples} answers to each" in words("docs/rl.md")
    assert f"The server answers {serve.slots} clients at once" in words("README.md")
    assert f"`--slots` answers ({serve.slots})" in words("docs/serving.md")
    assert f"`--queue` more ({serve.queue}) wait" in words("docs/serving.md")


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every word in the code."""
    folders = ("src", "tests", "benchmarks", "docs")
    files = [path for each in folders for path in (REPOSITORY / each).rglob("*.py")]
    code = " ".join([text("pyproject.toml"), *(file.read_text("utf-8") for file in files)])
    return set(re.findall(r"\w+", code))


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/extending.md", "CONTRIBUTING.md"])
def test_names_of_the_code_exist(page: str, known: set[str]) -> None:
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    named = {name for name in re.findall(r"`(\w+(?:\.\w+)*)`", prose) if name[-3:] != ".py"}
    assert named
    assert {name for name in named if name.split(".")[-1] not in known} == set()


def test_messages_that_the_page_of_installing_quotes_are_printed() -> None:
    table = text("docs/install.md").split("| what you see | what to do |")[1].split("\n\n")[0]
    quoted = re.findall(r'"([^"]+)"', "".join(row.split("|")[1] for row in table.splitlines()[2:]))
    sources = (REPOSITORY / "src").rglob("*.py")
    printed = " ".join(path.read_text("utf-8") for path in sources)
    assert len(quoted) == 2
    assert [message for message in quoted if message not in printed] == []
