"""CORE's prompts, tokens and verdicts are those of nanochat's own code, one at a time or many."""

import math
import random
from itertools import starmap
from typing import Any

import pytest
from support.core_goldens import (
    ARCHITECTURES,
    MadeTask,
    bundle_goldens,
    core_model,
    core_tokenizer,
    made_tasks,
    same_ids,
    same_prompt,
)
from support.memory import memory_held
from support.models import network
from support.places import SHARED, needs_shared

from mlxchat.errors import DataError, MemoryLimitError
from mlxchat.evaluate import core_batches
from mlxchat.evaluate.core_batches import (
    TOKENS_ONLY,
    BatchLimit,
    batch_limit,
    groups,
    reading,
)
from mlxchat.evaluate.core_bundle import Bundle
from mlxchat.evaluate.core_prompts import (
    CoreExample,
    CoreRow,
    encode_examples,
    mark_rows,
    render_prompts,
    shots,
)
from mlxchat.evaluate.core_tasks import (
    CORE_TASKS,
    CompletionItem,
    CoreTask,
    core_items,
)
from mlxchat.evaluate.core_verdicts import CoreVerdict, judge_examples
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import Tokenizer

MARGIN = 1e-4  # of the best mean loss to the second: a smaller one may be decided by rounding

MADE = [
    pytest.param(arch, task, id=f"{arch}, {task.label}")
    for arch in ARCHITECTURES
    for task in made_tasks(arch)
]


def examples_of(made: MadeTask) -> list[CoreExample]:
    indices = range(len(made.items))
    return list(encode_examples(made.task, made.items, indices, core_tokenizer()))


def require_same(verdict: CoreVerdict, expected: dict[str, Any]) -> None:
    """The golden verdict, and losses within 1e-4."""
    if "predicted" in expected:
        assert list(verdict.predicted) == expected["predicted"]
    else:
        assert verdict.mean_losses == pytest.approx(expected["mean_losses"], abs=1e-4)
    assert verdict.right == expected["right"] or expected["margin"] < MARGIN


@pytest.mark.parametrize(("arch", "made"), MADE)
def test_prompts_are_nanochats(arch: Architecture, made: MadeTask) -> None:
    for index, expected in enumerate(made.expected):
        rendered = render_prompts(made.task, made.items, index)
        assert all(starmap(same_prompt, zip(rendered, expected["prompts"], strict=True)))


@pytest.mark.parametrize(("arch", "made"), MADE)
def test_ids_and_spans_are_nanochats(arch: Architecture, made: MadeTask) -> None:
    for example, expected in zip(examples_of(made), made.expected, strict=True):
        ids = [row.ids for row in example.rows]
        assert all(starmap(same_ids, zip(ids, expected["ids"], strict=True)))
        assert [row.start for row in example.rows] == expected["starts"]
        assert [row.end for row in example.rows] == expected["ends"]


@pytest.mark.parametrize("share", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize(("arch", "made"), MADE)
def test_verdicts_are_nanochats(arch: Architecture, made: MadeTask, share: bool) -> None:
    saved, examples = core_model(arch), examples_of(made)
    verdicts = list(judge_examples(saved.model, examples, saved.tokenizer.bos, share))
    assert sorted(verdict.index for verdict in verdicts) == list(range(len(examples)))
    for verdict in verdicts:
        require_same(verdict, made.expected[verdict.index])
    right = sum(verdict.right for verdict in verdicts)
    assert right / len(verdicts) == pytest.approx(made.accuracy, abs=1e-6)


@pytest.mark.parametrize(("arch", "made"), MADE)
def test_many_at_a_time_are_judged_as_one_at_a_time(
    arch: Architecture, made: MadeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, examples = core_model(arch), examples_of(made)
    together = {v.index: v for v in judge_examples(saved.model, examples, saved.tokenizer.bos)}
    monkeypatch.setattr(core_batches, "MOST_LOGITS", 3000)  # two tokens at a time
    for example in examples:
        [alone] = judge_examples(saved.model, [example], saved.tokenizer.bos, share=False)
        assert alone.right == together[example.index].right
        assert alone.predicted == together[example.index].predicted
        assert alone.mean_losses == pytest.approx(together[example.index].mean_losses, abs=1e-5)


# The bundle, which is not in the repository


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("label", CORE_TASKS)
def test_the_bundles_examples_are_judged_as_by_nanochat(arch: Architecture, label: str) -> None:
    goldens = bundle_goldens(arch)
    [expected] = (task for task in goldens["tasks"] if task["label"] == label)
    task, saved = CORE_TASKS[label], core_model(arch)
    content = Bundle(SHARED / "data" / "eval_bundle.zip").read([label])[label]
    items = core_items(label, content, goldens["max_per_task"])
    examples = list(encode_examples(task, items, range(len(items)), saved.tokenizer))
    first = expected["examples"][0]
    prompts = render_prompts(task, items, 0)
    assert all(starmap(same_prompt, zip(prompts, first["prompts"], strict=True)))
    rows = examples[0].rows
    assert all(same_ids(row.ids, ids) for row, ids in zip(rows, first["ids"], strict=True))
    assert [row.start for row in rows] == first["starts"]
    assert [row.end for row in rows] == first["ends"]
    verdicts = list(judge_examples(saved.model, examples, saved.tokenizer.bos))
    assert len(verdicts) == len(expected["examples"])
    for verdict in verdicts:
        require_same(verdict, expected["examples"][verdict.index])
    for example in examples[:3]:
        [alone] = judge_examples(saved.model, [example], saved.tokenizer.bos, share=False)
        require_same(alone, expected["examples"][example.index])


# What nanochat's templates do not say


def test_the_example_itself_is_never_among_its_shots() -> None:
    task = CoreTask("made", "completion", 3, 0, (0, 0, 0, 0))
    drawn = [shots(task, 5, index) for index in range(5)]
    for index, numbers in enumerate(drawn):
        others = [number for number in range(5) if number != index]
        assert numbers == random.Random(1234 + index).sample(others, 3)


def test_equal_rows_are_equally_likely_and_the_first_counts() -> None:
    saved = network()
    same, other = CoreRow((256, 1, 2, 3), 2, 4), CoreRow((256, 1, 9, 7), 2, 4)
    for rows in ((same, same), (same, same, other, same)):
        for gold in range(len(rows)):
            [verdict] = judge_examples(saved.model, [CoreExample.of(0, rows, gold)], 256)
            lowest = verdict.mean_losses.index(min(verdict.mean_losses))
            assert verdict.right == (lowest == gold)
            assert verdict.mean_losses[0] == verdict.mean_losses[1]


def test_a_row_without_tokens_that_count_is_chosen_in_the_first_place_only() -> None:
    """The mean of nothing is NaN, which Python's min keeps if it comes first."""
    saved = network()
    rows = mark_rows("multiple choice", [[256, 1, 2], [256, 1, 2, 3]])
    assert [(row.start, row.end) for row in rows] == [(3, 3), (3, 4)]
    for order, chosen in ((rows, 0), (rows[::-1], 0)):
        [verdict] = judge_examples(saved.model, [CoreExample.of(0, order, chosen)], 256)
        assert verdict.right
        assert math.isnan(verdict.mean_losses[order.index(rows[0])])


def test_equal_contexts_leave_no_token_to_predict() -> None:
    rows = mark_rows("schema", [[256, 1, 2], [256, 1, 2]])
    assert [row.start for row in rows] == [0, 0]
    [verdict] = judge_examples(network().model, [CoreExample.of(0, rows, 0)], 256)
    assert verdict.right and all(map(math.isnan, verdict.mean_losses))


def test_a_completion_whose_prompt_is_joined_with_it_is_refused() -> None:
    task = CoreTask("made.jsonl", "completion", 0, 0, (0, 0, 0, 0), delimiter="")
    joined = Tokenizer.train(["abcabc abc"] * 3, vocab_size=270)
    items = [CompletionItem(context="ab", continuation="c")]
    with pytest.raises(DataError, match=r"Example 0 of made\.jsonl cannot be evaluated"):
        list(encode_examples(task, items, [0], joined))


def test_what_rows_begin_with_is_read_once() -> None:
    rows = mark_rows("multiple choice", [[256, *range(100), n] for n in (200, 201, 202)])
    example = CoreExample.of(0, rows, 0)
    assert reading(example, n_layer=2).tokens == 100 + 3 * 2
    assert reading(example, n_layer=0).tokens == 3 * 102


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("share", [True, False])
def test_prompts_beyond_context_and_window_are_read_whole(arch: Architecture, share: bool) -> None:
    """Modern models see a window, and classic ones everything, however they are read."""
    saved = network(sequence_len=128, arch=arch)
    draw = random.Random(3)
    begins = [256, *(draw.randrange(256) for _ in range(400))]
    rows = mark_rows("multiple choice", [[*begins, 1, 2, 3], [*begins, 4], [*begins, 5, 6]])
    [found] = judge_examples(saved.model, [CoreExample.of(0, rows, 0)], 256, share)
    for row, mean in zip(rows, found.mean_losses, strict=True):
        [alone] = judge_examples(saved.model, [CoreExample.of(0, (row,), 0)], 256, share=False)
        assert mean == pytest.approx(alone.mean_losses[0], abs=1e-5)


# Memory


def long_examples(count: int, vocabulary: int = 250) -> list[CoreExample]:
    draw = random.Random(5)
    examples = []
    for index in range(count):
        begins = [256, *(draw.randrange(vocabulary) for _ in range(60 + index))]
        rows = mark_rows("multiple choice", [[*begins, n, n, n + 1] for n in range(4)])
        examples.append(CoreExample.of(index, rows, index % 4))
    return examples


def test_a_limit_of_memory_changes_how_many_are_read_but_no_verdict() -> None:
    saved, examples = network(), long_examples(12)
    expected = {v.index: v for v in judge_examples(saved.model, examples, 256)}
    small, tiny = BatchLimit(memory=2**20), BatchLimit(memory=1)
    sizes = [
        [len(group) for group in groups(saved.model, examples, True, limit)]
        for limit in (TOKENS_ONLY, small, tiny)
    ]
    assert len(sizes[0]) == 1 < len(sizes[1]) < 12 and sizes[2] == [1] * 12
    for limit in (small, tiny):
        for verdict in judge_examples(saved.model, examples, 256, limit=limit):
            assert verdict.right == expected[verdict.index].right
            assert verdict.mean_losses == pytest.approx(
                expected[verdict.index].mean_losses, abs=1e-5
            )


def test_a_model_that_does_not_fit_is_refused() -> None:
    model = network().model
    with pytest.raises(MemoryLimitError, match=r"This model needs .* MB to read 512 tokens"):
        batch_limit(model, "1MB")
    limit = batch_limit(model, "200GB")
    assert limit.memory is not None and limit.memory < 160e9
    assert batch_limit(model, None).memory


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_batches_stay_within_the_memory_that_is_estimated(arch: Architecture) -> None:
    config = GPTConfig(
        arch=arch, sequence_len=512, vocab_size=4096, n_layer=4, n_head=2, n_kv_head=2, n_embd=256,
        window_pattern="L" if arch == "classic" else "SL",
    )  # fmt: skip
    model, draw = GPT.new(config, seed=0), random.Random(1)
    examples = []
    for index in range(6):
        begins = [draw.randrange(250) for _ in range(300)]
        rows = mark_rows("multiple choice", [[*begins, *[n] * 20, n + 1] for n in range(4)])
        examples.append(CoreExample.of(index, rows, 0))
    mx.eval(model.parameters())
    for memory in (2**25, 2**27):
        before = memory_held()
        usual = mx.set_memory_limit(1)  # nothing is computed ahead
        list(judge_examples(model, examples, 256, limit=BatchLimit(memory=memory)))
        mx.set_memory_limit(usual)
        assert 0.2 * memory < mx.get_peak_memory() - before < memory
