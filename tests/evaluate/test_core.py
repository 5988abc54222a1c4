"""CORE of a model: the tasks, their bundle, the scores, and an evaluation that is interrupted."""

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.core_bundle import EXAMPLES, MADE, made_bundle
from support.core_goldens import bundle_goldens, core_model
from support.hub_server import Fault, HubServer
from support.models import network
from support.places import SHARED, needs_shared

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import BaseEvalConfig
from mlxchat.data.hub import Hub
from mlxchat.errors import ConfigError, DataError, LockedError, NotFound
from mlxchat.evaluate import core, core_bundle
from mlxchat.evaluate.answers import Score
from mlxchat.evaluate.core import (
    CORE,
    CoreResult,
    centered_error,
    core_scores,
    evaluate_run,
    measure_core,
)
from mlxchat.evaluate.core_bundle import Bundle, bundle_host, open_bundle
from mlxchat.evaluate.core_examples import CoreExamples, read_items
from mlxchat.evaluate.core_kept import KeptVerdicts, Verdicts, core_stem
from mlxchat.evaluate.core_tasks import (
    CORE_TASKS,
    GPT2_CORE,
    ChoiceItem,
    core_items,
    core_labels,
)
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Event, Noted, Progressed

ZIP = SHARED / "data" / "eval_bundle.zip"
CORE_OF_12 = -0.055820545159106484  # nanochat's, of the modern model


# Tasks


def test_gpt2s_core_is_the_mean_of_its_scores() -> None:
    """Which holds the shares and the baselines of all tasks together."""
    for size, expected in enumerate(GPT2_CORE):
        centered = [
            (task.gpt2[size] - task.baseline / 100) / (1 - task.baseline / 100)
            for task in CORE_TASKS.values()
        ]
        assert sum(centered) / 22 == pytest.approx(expected, abs=2e-6)


def test_tasks_are_named_in_any_order_and_case() -> None:
    assert core_labels(None) == list(CORE_TASKS)
    assert core_labels(" squad,Copa, ") == ["copa", "squad"]
    with pytest.raises(ConfigError, match="There is no task 'mmlu'"):
        core_labels("copa,mmlu")
    with pytest.raises(ConfigError, match="`tasks` names no task"):
        core_labels(",")


def test_a_limit_leaves_the_first_examples_in_nanochats_order() -> None:
    rows = [{"query": f"{n}?", "choices": ["a", "b"], "gold": 0} for n in range(30)]
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    every, few = core_items("copa", content, None), core_items("copa", content, 5)
    assert few == every[:5] and len(every) == 30
    assert [item.query for item in every if isinstance(item, ChoiceItem)] != [
        f"{n}?" for n in range(30)
    ]


def test_a_limit_leaves_room_for_the_shots() -> None:
    row = json.dumps({"query": "?", "choices": ["a"], "gold": 0})
    content = "\n".join([row] * 20).encode()
    assert len(core_items("piqa", content, 11)) == 11
    with pytest.raises(ConfigError, match="contains 10 other examples") as caught:
        core_items("piqa", content, 10)
    assert "`max_per_task=11`" in caught.value.remedy
    with pytest.raises(ConfigError, match="number of examples is 1") as missing:
        core_items("piqa", row.encode(), 500)
    assert "max_per_task" not in missing.value.remedy  # no limit would help


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"query": "?", "choices": [], "gold": 0}', b"", b'{"query": 1}']
    + [b'{"query": "?", "choices": ["a"], "gold": %d}' % gold for gold in (1, -1)],
)
def test_a_line_that_is_no_example_is_named(line: bytes) -> None:
    good = b'{"query": "?", "choices": ["a"], "gold": 0}\n'
    with pytest.raises(DataError, match=r"Line 2 of copa\.jsonl is not an example of copa"):
        core_items("copa", good + line + b"\n" + good, None)


# The bundle


def test_a_folder_is_a_bundle_at_either_level(tmp_path: Path) -> None:
    folder = made_bundle(tmp_path)
    for path in (folder, tmp_path):
        assert Bundle(path).read(MADE).keys() == set(MADE)
    assert Bundle(folder).checksum == Bundle(tmp_path).checksum
    before = Bundle(folder).checksum
    with (folder / "eval_data" / CORE_TASKS["copa"].file).open("a") as file:
        file.write('{"query": "?", "choices": ["a"], "gold": 0}\n')
    assert Bundle(folder).checksum != before


def test_what_a_bundle_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no bundle of CORE tasks at"):
        Bundle(tmp_path / "none.zip")
    with pytest.raises(NotFound, match="has no folder eval_data"):
        Bundle(tmp_path)
    with pytest.raises(NotFound, match=r"squad\.jsonl, the examples of squad"):
        Bundle(made_bundle(tmp_path)).read(["copa", "squad"])


def test_another_zip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval_bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("eval_bundle/eval_data/x", "")
    with pytest.raises(DataError, match="is not the CORE bundle: its sha256 is") as caught:
        Bundle(path)
    assert "`" not in caught.value.remedy  # the setting has another name in a run


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip file that counts as the original."""
    folder, path = made_bundle(tmp_path / "made"), tmp_path / "original.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.jsonl"):
            archive.write(file, str(file.relative_to(folder.parent)))
    content = path.read_bytes()
    monkeypatch.setattr(core_bundle, "BUNDLE_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(core_bundle, "BUNDLE_BYTES", len(content))
    return path


@pytest.fixture
def server(original: Path) -> Iterator[HubServer]:
    with HubServer({"/eval_bundle.zip": original}) as server:
        yield server


def fetched(server: HubServer, default: Path) -> tuple[Bundle, list[Event]]:
    events: list[Event] = []
    hub = Hub(server.endpoint, httpx.Client(), sleep=lambda _: None)
    return open_bundle(None, default, events.append, lambda: hub), events


def test_a_missing_bundle_is_fetched_once(server: HubServer, home: Path, original: Path) -> None:
    bundle, events = fetched(server, home / "eval_bundle.zip")
    assert bundle.path.read_bytes() == original.read_bytes()
    assert bundle.read(MADE)["copa"].count(b"\n") == EXAMPLES
    assert isinstance(events[-1], Progressed) and events[-1].done == events[-1].total
    fetched(server, home / "eval_bundle.zip")
    assert server.count("GET", "eval_bundle.zip") == 1


def test_a_download_that_is_not_the_original_is_not_kept(server: HubServer, home: Path) -> None:
    server.faults.append(Fault(name=".zip", times=10, status=404))
    with pytest.raises(DataError, match="does not exist") as caught:
        fetched(server, home / "eval_bundle.zip")
    assert str(home / "eval_bundle.zip") in caught.value.remedy
    assert "`" not in caught.value.remedy  # the setting has another name in a run
    assert not (home / "eval_bundle.zip").exists()


def test_a_bundle_that_is_named_is_not_fetched(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_bundle(tmp_path / "none.zip", tmp_path / "default.zip", lambda event: None)
    assert server.requests == []


def test_nanochats_server_gets_no_token_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub = bundle_host()
    assert (hub.token, hub.login, hub.query) == (None, None, "")
    hub.close()


# Scores


def score(label: str, right: int, problems: int = 100) -> Score:
    return Score(label, problems, right, CORE_TASKS[label].baseline / 100)


def test_centered_scores_have_the_error_of_what_they_are_made_of() -> None:
    result = CoreResult((score("copa", 75), score("squad", 10)), None)
    assert result.core == pytest.approx((0.5 + 0.1) / 2)
    assert centered_error(result.scores[0]) == pytest.approx(2 * result.scores[0].error)
    errors = [2 * score("copa", 75).error, score("squad", 10).error]
    assert result.error == pytest.approx(math.hypot(*errors) / 2)
    assert not result.has_all_tasks
    assert CoreResult(tuple(score(label, 5) for label in CORE_TASKS), None).has_all_tasks


def test_the_csv_has_nanochats_form(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    CoreResult((score("copa", 60), score("boolq", 55)), 100).write_csv(path)
    assert path.read_text().splitlines() == [
        "Task                               , Accuracy  , Centered  ",
        "copa                               , 0.600000  , 0.200000  ",
        "boolq                              , 0.550000  , -0.184211 ",
    ]
    CoreResult(tuple(score(label, 100) for label in CORE_TASKS), 100).write_csv(path)
    last = path.read_text().splitlines()[-1]
    assert last == "CORE                               ,           , 1.000000  "


# An evaluation


def evaluated(
    home: Path, bundle: Path, fresh: bool = False, model: str | None = None, **given: object
) -> tuple[CoreResult, list[Event]]:
    events: list[Event] = []
    given = {"tasks": ",".join(MADE), "bundle": bundle, **given}
    config = BaseEvalConfig.model_validate(given)
    saved, place = core_model("modern"), Home(home)
    result, _ = evaluate_run("m", saved, config, place, events.append, fresh, model=model)
    return result, events


def test_every_example_is_judged_and_counted(home: Path, tmp_path: Path) -> None:
    result, events = evaluated(home, made_bundle(tmp_path))
    assert [each.task for each in result.scores] == list(MADE)
    assert [each.problems for each in result.scores] == [EXAMPLES] * 3
    progress = [event for event in events if isinstance(event, Progressed)]
    for label in MADE:
        done = [event.done for event in progress if event.task == label]
        assert done == [*range(1, EXAMPLES + 1), EXAMPLES]
    last = [event for event in progress if event.task == CORE][-1]
    assert last.done == last.total and last.unit == "tokens"
    [csv] = (home / "base_eval").glob("*.csv")
    assert csv.read_text().count("\n") == 4
    _, events = evaluated(home, tmp_path / "eval_bundle")  # again: nothing is left to read
    progress = [event for event in events if isinstance(event, Progressed)]
    assert [(event.task, event.done) for event in progress] == [(label, EXAMPLES) for label in MADE]


def test_a_limit_counts_for_each_task(home: Path, tmp_path: Path) -> None:
    result, _ = evaluated(home, made_bundle(tmp_path), max_per_task=12)
    assert [each.problems for each in result.scores] == [12] * 3
    [csv] = (home / "base_eval").glob("*.csv")
    assert csv.name.startswith("m_12_per_task_")


def test_an_interrupted_evaluation_resumes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made_bundle(tmp_path)
    expected, _ = evaluated(tmp_path / "other", bundle)
    judge, judged = core.judge_examples, []

    def until_the_tenth(model, examples, padding, limit):  # type: ignore[no-untyped-def]
        for verdict in judge(model, examples, padding, limit=limit):
            judged.append(verdict)
            if len(judged) == 10:
                raise KeyboardInterrupt
            yield verdict

    monkeypatch.setattr(core, "judge_examples", until_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        evaluated(home, bundle)
    result, events = evaluated(home, bundle)
    assert result == expected
    assert len(judged) == 3 * EXAMPLES + 1  # the tenth twice
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes == [f"9 of {3 * EXAMPLES} examples had already been evaluated."]
    assert evaluated(home, bundle)[0] == expected
    assert len(judged) == 3 * EXAMPLES + 1
    assert evaluated(home, bundle, fresh=True)[0] == expected
    assert len(judged) == 6 * EXAMPLES + 1


def test_tasks_are_added_to_those_before(home: Path, tmp_path: Path) -> None:
    bundle = made_bundle(tmp_path)
    evaluated(home, bundle, tasks="copa")
    _, events = evaluated(home, bundle, tasks="copa,winograd")
    assert any(isinstance(event, Noted) and event.text.startswith("14 of 28") for event in events)
    names = {path.name.split("_", 4)[-1] for path in (home / "base_eval").glob("*.csv")}
    assert names == {"1_tasks.csv", "2_tasks.csv"}  # the scores of all tasks are never replaced


def test_only_verdicts_on_the_tasks_at_hand_are_forgotten(home: Path, tmp_path: Path) -> None:
    bundle = made_bundle(tmp_path)
    evaluated(home, bundle)
    [path] = (home / "base_eval").glob("*.jsonl")
    with KeptVerdicts.open(path, ["copa"]) as kept:
        assert {task for task, _ in kept.right} == {"winograd", "bigbench_operators"}
    _, events = evaluated(home, bundle)
    assert any(isinstance(event, Noted) and event.text.startswith("28 of 42") for event in events)


@pytest.mark.parametrize(
    "end", [b'{"task": "copa", "ind', b"\xff\n", b'{"task": "copa", "index": 3, "right": true}']
)
def test_what_a_power_cut_left_incomplete_is_judged_again(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept" / "verdicts.jsonl"
    with KeptVerdicts.open(path) as kept:
        kept.add("copa", 1, True)
        kept.add("squad", 2, False)
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    with KeptVerdicts.open(path) as kept:
        assert kept.right == {("copa", 1): True, ("squad", 2): False}
        kept.add("copa", 4, False)
    assert path.read_bytes().startswith(whole) and path.read_bytes().count(b"\n") == 3


def test_two_processes_do_not_evaluate_the_same(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with (
        KeptVerdicts.open(path),
        pytest.raises(LockedError, match="is evaluating the same model"),
        KeptVerdicts.open(path),
    ):
        pass


def test_another_model_has_files_of_its_own(tmp_path: Path) -> None:
    bundle = Bundle(made_bundle(tmp_path))
    saved, other = network(), network(seed=2)
    half = network()
    half.model.dtype = mx.bfloat16
    retrained = replace(saved, tokenizer=core_model("modern").tokenizer)
    stems = {
        core_stem(name, model, bundle, limit)
        for name, model, limit in [
            ("m", saved, None), ("m", saved, 5), ("m", other, None), ("m", half, None),
            ("m", retrained, None), ("n", saved, None),
        ]
    }  # fmt: skip
    assert len(stems) == 6
    assert core_stem("m", network(), bundle, None) == core_stem("m", saved, bundle, None)


def test_what_an_earlier_version_kept_is_resumed_and_says_whose_it_is(
    home: Path, tmp_path: Path
) -> None:
    bundle, folder = made_bundle(tmp_path), home / "base_eval"
    expected, _ = evaluated(home, bundle, tasks="copa")
    for path in folder.iterdir():  # as earlier versions called it
        path.rename(folder / re.sub("_of_[0-9a-f]{8}", "", path.name))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result, events = evaluated(home, bundle, tasks="copa", model="5e6f7a8b")
    assert result == expected
    assert any(isinstance(event, Noted) and event.text.startswith("14 of 14") for event in events)
    after = {path.name.replace("_of_5e6f7a8b", ""): path.read_bytes() for path in folder.iterdir()}
    assert after == before and all("_of_5e6f7a8b" in path.name for path in folder.iterdir())


def test_the_same_weights_are_evaluated_once_wherever_they_are(home: Path, tmp_path: Path) -> None:
    bundle, folder = made_bundle(tmp_path), home / "base_eval"
    for model in (None, "5e6f7a8b", "0a0b0c0d", None):  # in memory first and last
        _, events = evaluated(home, bundle, tasks="copa", model=model)
        assert len(list(folder.glob("*.jsonl"))) == 1
    assert all("_of_0a0b0c0d" in path.name for path in folder.iterdir())
    assert any(isinstance(event, Noted) for event in events)  # that all had been evaluated


def test_what_another_process_evaluates_is_not_renamed(home: Path, tmp_path: Path) -> None:
    bundle = made_bundle(tmp_path)
    evaluated(home, bundle, tasks="copa")
    [path] = (home / "base_eval").glob("*.jsonl")
    with KeptVerdicts.open(path), pytest.raises(LockedError, match="is evaluating the same model"):
        evaluated(home, bundle, tasks="copa", model="5e6f7a8b")
    assert path.exists()


@needs_shared
@pytest.mark.slow
def test_core_of_the_bundle_is_nanochats() -> None:
    goldens, saved = bundle_goldens("modern"), core_model("modern")
    result = all_of_12(saved)
    assert result.core == pytest.approx(goldens["core_metric"], abs=1e-6)
    assert result.core == pytest.approx(CORE_OF_12, abs=1e-6)
    assert {each.task: each.share for each in result.scores} == pytest.approx(
        goldens["results"], abs=1e-6
    )
    assert {each.task: each.centered for each in result.scores} == pytest.approx(
        goldens["centered_results"], abs=1e-6
    )


def all_of_12(saved: SavedModel) -> CoreResult:
    examples = CoreExamples(read_items(Bundle(ZIP), list(CORE_TASKS), 12), saved.tokenizer)
    verdicts = Verdicts()
    for _ in measure_core(saved.model, examples, verdicts):
        pass
    return CoreResult(core_scores(examples, verdicts), 12)


@needs_shared
@pytest.mark.slow
def test_every_line_of_the_bundle_is_an_example() -> None:
    contents = Bundle(ZIP).read(CORE_TASKS)
    counts = [len(core_items(label, contents[label], None)) for label in CORE_TASKS]
    assert sum(counts) == 80_995 + 10_042  # hellaswag counts twice
