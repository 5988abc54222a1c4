"""Tasks: how problems are made of files, how answers are scored, and what a guess gets."""

import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import packed
from support.marks import slow
from support.models import BYTES, network
from support.places import SHARED, needs_shared
from support.task_rows import ARC, GSM8K, HUMAN_EVAL, MMLU, fill

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import TASK_NAMES, ChatEvalConfig
from mlxchat.data.questions.choice import TaskChoice
from mlxchat.data.questions.question import final_number
from mlxchat.data.questions.tasks import generated_questions
from mlxchat.engine.generate import continue_greedily
from mlxchat.engine.tools import ToolUse
from mlxchat.errors import MlxchatError
from mlxchat.evaluate import answers, tasks
from mlxchat.evaluate.answers import (
    Outcome,
    Score,
    answer_problems,
    by_length,
    choose_letters,
    mean_centered,
    padded,
    write_answers,
)
from mlxchat.evaluate.execution import runs_through
from mlxchat.evaluate.pass_at_k import share_of
from mlxchat.evaluate.tasks import Choice, Exercise, problems, program, user_prompt
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.runtime import mx

STOP = frozenset({BYTES.bos, BYTES.special("<|assistant_end|>")})
REAL = SHARED / "data" / "task_data"


def questions(count: int, letters: str = "ABCD", seed: int = 0) -> list[Choice]:
    """Questions of many lengths, whose words mean nothing."""
    rng = random.Random(seed)
    return [
        Choice(
            user_prompt("".join(rng.choices("abcdefgh ", k=rng.randrange(1, 150)))),
            tuple(letters),
            rng.choice(letters),
        )
        for _ in range(count)
    ]


# Rows of files


def test_arc_in_the_form_that_nanochat_trains_on(tmp_path: Path) -> None:
    fill(tmp_path, "arc-easy", ARC)
    [problem] = problems("arc-easy", tmp_path, None)
    assert problem == Choice(
        user_prompt(
            "Multiple Choice question: What do cows eat?\n"
            "- grass=1\n- stones=2\n- clouds=3\n"
            "\nRespond only with the letter of the correct answer."
        ),
        ("1", "2", "3"),
        "1",
    )
    assert problem.random == pytest.approx(1 / 3)


def test_mmlu_answers_are_a_to_d(tmp_path: Path) -> None:
    fill(tmp_path, "mmlu", MMLU)
    [problem] = problems("mmlu", tmp_path, None)
    assert isinstance(problem, Choice)
    assert (problem.letters, problem.answer) == (("A", "B", "C", "D"), "D")
    assert "- 4=D\n" in problem.prompt.messages[0].text


def test_gsm8k_is_right_when_the_last_number_is(tmp_path: Path) -> None:
    fill(tmp_path, "gsm8k", GSM8K)
    [problem] = problems("gsm8k", tmp_path, None)
    assert isinstance(problem, Exercise) and problem.random == 0
    assert problem.prompt == user_prompt("How many?")
    assert problem.is_right("So it is\n#### 1234")
    assert problem.is_right("#### 1,234 apples")
    for wrong in ("1234", "####1234", "#### 1235", "#### 1234.", "#### -1234", "", "#### x"):
        assert not problem.is_right(wrong), wrong


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### -3.50", "-3.50"),
        ("#### 1\n#### 2", "1"),
        ("#### $5", None),
        ("#### 1,000,000", "1000000"),
    ],
)
def test_the_answer_of_gsm8k_is_the_number_after_the_marks(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_the_order_is_nanochats_and_the_sample_its_beginning(tmp_path: Path) -> None:
    fill(tmp_path, "gsm8k", *({**GSM8K, "question": f"Question {i}"} for i in range(50)))
    order = np.random.default_rng(42).permutation(50)  # tasks/common.py, load_hub_dataset
    everything = [problem.prompt.messages[0].text for problem in problems("gsm8k", tmp_path, None)]
    assert everything == [f"Question {i}" for i in order]
    some = [problem.prompt.messages[0].text for problem in problems("gsm8k", tmp_path, 7)]
    assert some == everything[:7]


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = fill(tmp_path, "gsm8k", {**GSM8K, "question": "first"})
    more = {**GSM8K, "question": "second"}
    pq.write_table(pa.Table.from_pylist([more]), folder / "00001.parquet")
    asked_for = {problem.prompt.messages[0].text for problem in problems("gsm8k", tmp_path, None)}
    assert asked_for == {"first", "second"}


@pytest.mark.parametrize("task", [name for name in tasks.TASKS if name != "spelling"])
def test_a_missing_folder_is_named(task: str, tmp_path: Path) -> None:
    with pytest.raises(MlxchatError) as caught:
        problems(task, tmp_path, None)
    assert str(tmp_path / tasks.TASKS[task].folder) in caught.value.problem
    organisation, name = tasks.TASKS[task].folder.split("/")[0].split("--")
    assert f"{organisation}/{name}" in caught.value.remedy


@pytest.mark.parametrize(
    ("task", "row", "fault"),
    [
        ("arc-easy", {**ARC, "answerKey": "4"}, "the answer, 4, is not one of the choices"),
        ("arc-easy", {**ARC, "choices": {"text": ["a"], "label": ["1", "2"]}}, "differ"),
        ("arc-easy", {**ARC, "choices": {"text": ["a", "b"], "label": ["1", "é"]}}, "label.1"),
        ("mmlu", {**MMLU, "choices": ["1", "2"]}, "choices"),
        ("mmlu", {**MMLU, "answer": 4}, "answer"),
        ("gsm8k", {**GSM8K, "answer": "many"}, "no number"),
        ("gsm8k", {"question": "How many?"}, "answer: Field required"),
        ("humaneval", {"prompt": "def f(): ..."}, "test: Field required"),
    ],
)
def test_a_row_of_another_shape_is_named(task: str, row: dict, fault: str, tmp_path: Path) -> None:
    folder = fill(tmp_path, task, row)
    with pytest.raises(MlxchatError) as caught:
        problems(task, tmp_path, None)
    assert f"Row 1 of {folder}" in caught.value.problem and fault in caught.value.problem


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"text"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    folder = fill(tmp_path, "mmlu", MMLU)
    (folder / "00000.parquet").write_bytes(content)
    with pytest.raises(MlxchatError, match=r"00000\.parquet is damaged"):
        problems("mmlu", tmp_path, None)


def test_a_small_file_that_stands_for_much_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path, "gsm8k", GSM8K)
    packed.by_reference(folder / "00000.parquet", "question")
    with pytest.raises(MlxchatError, match=r"00000\.parquet unpacks to more than 64,000,000"):
        problems("gsm8k", tmp_path, None)


def test_spelling_needs_no_files(tmp_path: Path) -> None:
    every = problems("spelling", tmp_path, None)
    assert len(every) == tasks.SPELLING_PROBLEMS
    assert [p.prompt for p in problems("spelling", tmp_path, 5)] == [p.prompt for p in every[:5]]
    for problem in every:
        assert isinstance(problem, Exercise)
        assert [message.role for message in problem.prompt.messages] == ["user"]
        assert sum(problem.is_right(f"#### {number}") for number in range(30)) == 1


@pytest.mark.parametrize("name", ["arithmetic-4", "spelling-2", "counting"])
def test_a_generated_task_is_measured_on_what_it_holds_out(name: str, tmp_path: Path) -> None:
    choice = TaskChoice.parse(name)
    assert choice
    source = generated_questions(choice, seed=42)
    made = problems(name, tmp_path, 30)
    assert [problem.prompt for problem in made] == [
        each.conversation for each in source.held_out[:30]
    ]
    assert not {each.prompt for each in made} & {each.conversation for each in source.train[:500]}
    for problem, question in zip(made, source.held_out, strict=False):
        assert isinstance(problem, Exercise)
        assert problem.is_right(question.reply.text) and not problem.is_right("#### none")


def test_a_level_that_a_task_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match="There is no level 99 of arithmetic"):
        problems("arithmetic-99", tmp_path, None)


@needs_shared
@pytest.mark.parametrize(
    ("task", "count"),
    [
        ("arc-easy", 2376),
        ("arc-challenge", 1172),
        ("mmlu", 14042),
        ("gsm8k", 1319),
        ("humaneval", 164),
    ],
)
def test_the_real_files_are_read_whole(task: str, count: int) -> None:
    assert len(problems(task, REAL, None)) == count


# Names


def test_tasks_by_name() -> None:
    assert ChatEvalConfig().named is None
    assert ChatEvalConfig(tasks="gsm8k, ARC-Easy,gsm8k").named == ("arc-easy", "gsm8k")
    assert ChatEvalConfig(tasks="all").named == TASK_NAMES
    made = ChatEvalConfig(tasks="spelling-2,arithmetic-4,spelling,spelling-2,arithmetic").named
    assert made == ("spelling", "spelling-2", "arithmetic-4", "arithmetic")
    with pytest.raises(MlxchatError, match="There is no task 'hellaswag'"):
        ChatEvalConfig(tasks="gsm8k,hellaswag")
    with pytest.raises(MlxchatError, match="names no task"):
        ChatEvalConfig(tasks=" , ")


# Rows of different lengths


def test_groups_are_bounded_and_hold_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_BATCH_TOKENS", 100)
    lengths = [random.Random(5).randrange(1, 130) for _ in range(200)]
    groups = list(by_length(lengths, rows=8))
    assert sorted(index for group in groups for index in group) == list(range(200))
    for group in groups:
        longest = max(lengths[index] for index in group)
        assert len(group) == 1 or (len(group) <= 8 and len(group) * longest <= 100)
    assert list(by_length([])) == []


def test_rows_are_padded_on_the_right() -> None:
    assert padded([[1, 2, 3], [4]], -1).tolist() == [[1, 2, 3], [4, -1, -1]]


# Choosing


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_choices_are_those_of_each_question_alone(
    arch: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MAX_BATCH_TOKENS", 1500)
    saved = network(sequence_len=64, arch=arch)  # most questions are longer
    asked_for = questions(30) + questions(10, "ABC", seed=1) + questions(5, "12345", seed=2)
    outcomes = {id(outcome.problem): outcome for outcome in choose_letters(saved, asked_for)}
    for choice in asked_for:
        ids = BYTES.render_for_completion(choice.prompt)
        logits = np.array(saved.model(mx.array([ids])))[0, -1]
        letter = max(choice.letters, key=lambda letter: logits[ord(letter)])
        assert outcomes[id(choice)] == Outcome(choice, letter, letter == choice.answer)
    assert len({outcome.answer for outcome in outcomes.values()}) > 3  # or it would show nothing


@pytest.mark.slow
def test_a_random_model_guesses() -> None:
    """Its answers do not depend on which are right: its share is within 3.5 errors of a guess's."""
    asked_for = questions(400) + questions(400, "ABCDE", seed=3)
    for seed in range(2):
        score = Score.of("made up", list(choose_letters(network(seed=seed), asked_for)))
        assert score.random == pytest.approx((1 / 4 + 1 / 5) / 2)
        error = math.sqrt(score.random * (1 - score.random) / score.problems)
        assert abs(score.share - score.random) < 3.5 * error


@pytest.mark.slow
@needs_shared
def test_a_random_model_guesses_on_arc_easy() -> None:
    asked_for = problems("arc-easy", REAL, 200)
    score = Score.of("arc-easy", list(choose_letters(network(sequence_len=1024), asked_for)))
    assert score.random == pytest.approx(0.25, abs=0.01)
    error = math.sqrt(score.random * (1 - score.random) / score.problems)
    assert abs(score.share - score.random) < 3 * error


# Writing


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [slow(1), 3, slow(16)])
def test_written_answers_are_those_of_each_prompt_alone(batch_size: int) -> None:
    saved = network(sequence_len=64)  # so that some prompts and most answers go beyond it
    exercises = [
        Exercise(question.prompt, lambda text: "a" in text) for question in questions(9, seed=4)
    ]
    outcomes = {
        id(outcome.problem): outcome for outcome in write_answers(saved, exercises, batch_size, 48)
    }
    for exercise in exercises:
        ids = BYTES.render_for_completion(exercise.prompt)
        [tokens] = continue_greedily(saved.model, [ids], STOP, 48, lambda: ToolUse(BYTES))
        text = BYTES.decode(tokens, keep_special=True)
        assert outcomes[id(exercise)] == Outcome(exercise, text, "a" in text)


def test_both_kinds_of_problems_are_answered() -> None:
    asked_for = [*questions(3), Exercise(user_prompt("Hello"), bool)]
    answered = [outcome.problem for outcome in answer_problems(network(), asked_for, 16, 4)]
    assert sorted(map(id, answered)) == sorted(map(id, asked_for))


class Scripted:
    """A model that says ``script`` after every prompt, then ends; what is forced it reads over."""

    def __init__(self, script: list[int]) -> None:
        self.config = GPTConfig(
            sequence_len=512, vocab_size=BYTES.vocab_size, n_layer=1, n_head=1, n_kv_head=1,
            n_embd=2,
        )  # fmt: skip
        self._script = [*script, BYTES.special("<|assistant_end|>")]
        self._said = 0
        self.decode_step = None

    def features(self, ids: mx.array, cache: object) -> mx.array:
        cache.record(ids)  # type: ignore[attr-defined]
        empty = mx.zeros((ids.shape[0], 1, ids.shape[1], 2))
        cache.layers[0].extend(empty, empty)  # type: ignore[attr-defined]
        self._said = self._said + 1 if ids.shape[1] == 1 else 0
        following = self._script[min(self._said, len(self._script) - 1)]
        return mx.full((*ids.shape, 1), following)

    def logits(self, x: mx.array) -> mx.array:
        return 9.0 * (mx.arange(BYTES.vocab_size) == x).astype(mx.float32)

    def __call__(self, ids: mx.array, cache: object) -> mx.array:
        return self.logits(self.features(ids, cache))


def test_answers_may_use_the_calculator() -> None:
    call = [BYTES.special("<|python_start|>"), *b"6*7", BYTES.special("<|python_end|>")]
    forced = [BYTES.special("<|output_start|>"), *b"42", BYTES.special("<|output_end|>")]
    saved = SavedModel(Scripted([*call, *([0] * len(forced)), *b" is it"]), BYTES, True)
    right = "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|> is it"
    [outcome] = write_answers(saved, [Exercise(user_prompt("6*7?"), right.__eq__)], 16, 64)
    assert outcome.answer == right and outcome.right


def test_special_tokens_are_part_of_an_answer_as_in_nanochat() -> None:
    said = [*b"#### ", BYTES.special("<|output_start|>"), *b"18", BYTES.special("<|output_end|>")]
    asked = [Exercise(user_prompt("How many?"), tasks.gives_number("18"))]
    [outcome] = write_answers(SavedModel(Scripted(said), BYTES, True), asked, 16, 64)
    assert (outcome.answer, outcome.right) == ("#### <|output_start|>18<|output_end|>", False)
    [plain] = write_answers(SavedModel(Scripted([*b"#### 18"]), BYTES, True), asked, 16, 64)
    assert plain.right


# Scores


def scored(right: int, count: int, letters: str) -> Score:
    problem = Choice(user_prompt("?"), tuple(letters), letters[0])
    outcomes = [Outcome(problem, "", number < right) for number in range(count)]
    return Score.of("made up", outcomes)


def test_a_score_is_as_computed_by_hand() -> None:
    score = scored(40, 100, "ABCD")
    assert (score.problems, score.right, score.random) == (100, 40, 0.25)
    assert score.share == pytest.approx(0.4)
    assert score.error == pytest.approx(math.sqrt(0.4 * 0.6 / 100), rel=0.01)
    assert score.centered == pytest.approx(0.2)  # (0.4 - 0.25) / 0.75
    assert mean_centered([score, scored(0, 10, "AB")]) == pytest.approx((0.2 - 1) / 2)


@pytest.mark.parametrize("right", [0, 1, 7, 50, 99, 100])
def test_an_error_is_half_of_wilsons_interval(right: int) -> None:
    """Whose ends are the shares p that lie sqrt(p (1 - p) / n) from the one that was found."""
    score = scored(right, 100, "ABCD")
    n, share = 100, right / 100
    low, high = sorted(np.roots([1 + 1 / n, -(2 * share + 1 / n), share**2]))
    assert score.error == pytest.approx((high - low) / 2)
    assert score.error > 0.004


@pytest.mark.parametrize("right", [0, 40, 100])
def test_the_interval_of_problems_that_differ_is_wilsons(right: int) -> None:
    assert scored(right, 100, "ABCD").interval == share_of(right, 100)


def test_problems_that_ask_the_same_leave_more_doubt() -> None:
    """31 sums in 400 wordings, of which the model knows half: it is right or wrong in all words."""
    asked = problems("arithmetic-1", Path("nowhere"), None)
    known = set(sorted({problem.asked for problem in asked})[::2])
    score = Score.of("sums", [Outcome(each, "", each.asked in known) for each in asked])
    apart = share_of(score.right, 400)
    assert score.share == apart.value and score.problems == 400
    assert score.interval.high - score.interval.low > 3 * (apart.high - apart.low)
    assert score.error == pytest.approx((score.interval.high - score.interval.low) / 4, rel=0.1)
    facts = score.facts()
    assert (facts["low"], facts["high"]) == (score.interval.low, score.interval.high)


def test_a_letter_of_a_word_is_the_same_question_in_all_wordings() -> None:
    asked = [problem.asked for problem in problems("spelling", Path("nowhere"), None)]
    assert all(asked) and len(set(asked)) == 205 < len(asked) == tasks.SPELLING_PROBLEMS


# Programs


def test_a_program_is_imports_code_and_test() -> None:
    said = "Like so:\n```python\ndef twice(x):\n    return x + x\n```\nor\n```\nno\n```"
    whole = program(HUMAN_EVAL["prompt"], said, HUMAN_EVAL["test"], "twice")
    assert whole.startswith("from typing import List\n\ndef twice(x):")
    assert "import os" not in whole and "or" not in whole.split() and "```" not in whole
    assert whole.endswith("\n\ncheck(twice)")
    assert "Plain" in program("", "Plain", "", "f")


def test_humaneval_runs_what_was_written(tmp_path: Path) -> None:
    fill(tmp_path, "humaneval", HUMAN_EVAL)
    [problem] = problems("humaneval", tmp_path, None)
    assert isinstance(problem, Exercise)
    for end in ("\n", "\r\n"):
        lines = ("```python", "def twice(x: List) -> int:", "    return 2 * x", "```")
        assert problem.is_right(end.join(lines))
    assert not problem.is_right("def twice(x):\n    return 3 * x")
    assert not problem.is_right("Twice is easy.")


@needs_shared
def test_canonical_solutions_pass() -> None:
    rows = pq.read_table(REAL / tasks.TASKS["humaneval"].folder / "00000.parquet").to_pylist()
    for row in rows[::20]:
        said = f"```python\n{row['prompt']}{row['canonical_solution']}\n```"
        assert runs_through(program(row["prompt"], said, row["test"], row["entry_point"]))


@pytest.mark.parametrize(
    "source",
    [
        "1/0",
        "def",
        "exit()",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os._exit(42)",
        "raise SystemExit",
        "raise SystemExit(42)",
        "import sys; sys.exit(42)",
        "import os, sys; os._exit = sys.exit = exit = lambda *_: None; 1/0",
        "import atexit, os; atexit.register(os._exit, 0); 1/0",
        "import os, threading, time; threading.Timer(0, os._exit, [0]).start(); time.sleep(5)",
        "import os\nif os.fork(): raise ValueError",
        "import sys; [print(open(__file__).read(), sys.argv, file=f) for f in sys.argv[1:]]; 1/0",
        "input()",
        "import os; os.kill(os.getpid(), 9)",
        "\ud800",
    ],
)
def test_only_a_program_that_ends_by_itself_runs_through(source: str) -> None:
    assert runs_through("print('fine')\nassert __name__ == '__main__'\n")
    assert not runs_through(source)


@pytest.mark.parametrize(
    "source",
    [
        "import sys; assert len(sys.argv) == 1",
        "import os, runpy; os.write = os.read = os._exit = os.getpid = runpy.run_path = None",
        "import atexit, time; atexit.register(time.sleep, 60)",
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
        "import os; os.fork()",
        "try: exit(1)\nexcept SystemExit: pass",
    ],
)
def test_a_program_that_ends_runs_through_whatever_it_leaves(source: str) -> None:
    assert runs_through(source)


def test_time_is_limited() -> None:
    begun = time.monotonic()
    assert not runs_through("while True: pass", seconds=0.5)
    assert not runs_through("import time; time.sleep(60)", seconds=0.5)
    assert time.monotonic() - begun < 10


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes no limit on memory")
def test_memory_is_limited() -> None:
    assert runs_through(f"x = bytearray({2**24})")
    assert not runs_through(f"x = bytearray({2**29})")
    raised = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({2**40}, {2**40}))"
    if os.geteuid() != 0:
        assert not runs_through(raised)


def test_a_file_is_limited(tmp_path: Path) -> None:
    flood = f"open({str(tmp_path / 'flood')!r}, 'wb').write(b'x' * {2**21})"
    assert runs_through(flood)
    assert not runs_through(flood, memory=2**20)


def test_a_program_sees_no_secrets_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    told = tmp_path / "told"
    assert runs_through(
        "import os, sys\n"
        "assert 'HF_TOKEN' not in os.environ and not sys.stdin.read()\n"
        "open('left', 'w').write('x')\n"
        f"open({str(told)!r}, 'w').write(os.getcwd())\n"
    )
    assert not Path(told.read_text()).exists()


def gone(process: int) -> bool:
    """Whether a process has ended, though nobody may have asked for its exit code yet."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def until(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("ending", ["", "import time; time.sleep(60)"])
def test_processes_left_behind_are_killed(ending: str, tmp_path: Path) -> None:
    child = tmp_path / "child"
    source = (
        "import subprocess, sys\n"
        "started = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(started.pid))\n{ending}\n"
    )
    assert runs_through(source, seconds=2) == (not ending)
    process = int(child.read_text())
    assert until(lambda: gone(process))
