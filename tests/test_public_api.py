"""`import mlxchat`: which names it has, that it is quick, and that what they do is right."""

import doctest
import importlib
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from support.api_runs import TINY, chats, small_runs
from support.core_bundle import made_bundle
from support.marks import slow

import mlxchat
from mlxchat import api, errors, trained
from mlxchat.checkpoint import layout, store
from mlxchat.config.inference import Sampling
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.config.validate import validated
from mlxchat.home import Home
from mlxchat.model.quantization import Quantization
from mlxchat.runtime import mx
from mlxchat.telemetry import events
from mlxchat.telemetry.events import Noted, Progressed


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with runs as quickstart leaves them, though of a much smaller model."""
    home = tmp_path_factory.mktemp("trained")
    small_runs(home, home)
    return home


@pytest.fixture
def runs(trained_home: Path, home: Path) -> Home:
    """The test's own copy of that home."""
    shutil.copytree(trained_home, home)
    return Home(home)


# ---- names ---------------------------------------------------------------------------------------


def test_all_names_what_the_public_modules_define() -> None:
    expected = {"__version__", "Event"}
    expected |= {kind.__name__ for kind in get_args(events.Event)}
    expected |= {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MlxchatError)
    }
    expected |= {"Model", "Loss", "CoreResult", *api.__all__}
    expected |= {"GPT", "GPTConfig", "MuonAdamW", "PretrainConfig", "MidConfig", "SftConfig"}
    expected |= {"RlConfig"}
    expected |= {"Tokenizer", "Conversation", "Message", "Chat"}
    assert set(mlxchat.__all__) == expected
    assert set(mlxchat.__all__) <= set(dir(mlxchat))


def test_the_public_functions_are_all_that_their_module_defines() -> None:
    own = {
        name
        for name, value in vars(api).items()
        if getattr(value, "__module__", None) == api.__name__ and not name.startswith("_")
    }
    assert own == set(api.__all__)


def test_types_for_checkers_are_those_of_the_running_program() -> None:
    source = Path(mlxchat.__file__).read_text("utf-8")
    block = source[source.index("if TYPE_CHECKING:") : source.index("__version__ =")]
    scope: dict[str, object] = {"TYPE_CHECKING": True}
    exec(block, scope)
    for name in set(mlxchat.__all__) - {"__version__"}:
        assert scope[name] is getattr(mlxchat, name)


@pytest.mark.parametrize("name", sorted(set(mlxchat.__all__) - {"__version__", "Event"}))
def test_every_name_is_documented(name: str) -> None:
    value = getattr(mlxchat, name)
    assert inspect.getdoc(value)
    if value is mlxchat.Model:
        for member, function in vars(value).items():
            if not member.startswith("_") and inspect.isfunction(function):
                assert inspect.getdoc(function), f"{name}.{member}"


def test_no_name_is_that_of_a_subpackage() -> None:
    folder = Path(mlxchat.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(mlxchat.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        mlxchat.lode  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import mlxchat",
        "import mlxchat; dir(mlxchat)",
        "from mlxchat import MlxchatError, NotFound",
        "from mlxchat import Stepped, Saved",
        "import mlxchat.cli.app",
    ],
)
def test_imports_without_arrays(statement: str) -> None:
    script = (
        f"import sys\n{statement}\n"
        "heavy = {'mlx', 'mlx.core', 'numpy', 'pyarrow', 'tiktoken'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_sampling_options_are_the_settings_of_sampling() -> None:
    assert set(trained.SamplingOptions.__annotations__) == set(Sampling.model_fields)


# ---- a model -------------------------------------------------------------------------------------


def test_the_lines_of_a_notebook(runs: Home, capsys: pytest.CaptureFixture[str]) -> None:
    model = mlxchat.load("quickstart-sft")
    print(model.generate("The cow", max_tokens=20))
    print(model.chat().say("What does a cow say?"))
    for event in mlxchat.pretrain(**{**TINY, "depth": 2}, model_tag="d2"):
        print(event)
    assert "Stepped(" in capsys.readouterr().out
    assert mlxchat.load("d2").config.n_layer == 2


def test_one_step_by_hand() -> None:
    from mlxchat import GPT, GPTConfig, MuonAdamW

    model = GPT.new(GPTConfig.from_depth(1, vocab_size=300, sequence_len=32), seed=0)
    optimizer = MuonAdamW(model)
    ids = mx.random.randint(0, 300, (2, 33))
    losses = [float(optimizer.step(model, ids[:, :-1], ids[:, 1:])) for _ in range(3)]
    assert losses[2] < losses[0]


@pytest.mark.slow
def test_the_lines_of_a_notebook_as_they_are_printed(home: Path) -> None:
    from mlxchat.cli.quickstart import BASE_CONFIG, TUNED_CONFIG

    shorter = {"eval_every": 0, "sample_every": 0}
    list(mlxchat.pretrain(BASE_CONFIG.model_copy(update={"num_iterations": 200, **shorter})))
    list(mlxchat.fine_tune(TUNED_CONFIG.model_copy(update={"num_iterations": 80})))
    model = mlxchat.load("quickstart-sft")
    assert model.generate("The cow", max_tokens=20)
    assert "moo" in model.chat(temperature=0).say("What does a cow say?").lower()
    kinds = {
        type(event).__name__
        for event in mlxchat.pretrain(
            depth=2,
            dataset="builtin",
            max_seq_len=128,
            total_batch_size=2048,
            num_iterations=50,
        )
    }
    assert {"Started", "Stepped", "Evaluated", "Saved", "Ended"} <= kinds


def test_a_model_is_found_by_name_by_folder_and_as_the_newest(runs: Home) -> None:
    folder = store.directory(runs.finetuned / "quickstart-sft", 2)
    for source in ("quickstart-sft", folder, str(folder), folder.parent, None):
        assert mlxchat.load(source).name == "quickstart-sft"
    assert mlxchat.load("quickstart", step=2).name == "quickstart"
    assert "quickstart-sft: classic, depth 1, conversational" in repr(mlxchat.load())


@pytest.mark.slow
def test_another_home_is_given_by_keyword(trained_home: Path, home: Path, tmp_path: Path) -> None:
    model = mlxchat.load("quickstart", home=trained_home)
    exported = model.export("mlx-lm", tmp_path / "out")
    mlxchat.import_model(exported, "back", home=tmp_path / "elsewhere")
    assert mlxchat.load(home=tmp_path / "elsewhere").name == "back"
    list(mlxchat.pretrain(**TINY, model_tag="there", home=tmp_path / "elsewhere"))
    assert mlxchat.load("there", home=tmp_path / "elsewhere").name == "there"
    assert not home.exists()


def test_generated_text_is_repeatable_bounded_and_streamed(runs: Home) -> None:
    model = mlxchat.load("quickstart")
    text = model.generate("The cow", max_tokens=12, seed=7)
    assert text == "".join(model.stream("The cow", max_tokens=12, seed=7))
    assert text != model.generate("The cow", max_tokens=12, seed=8)
    ids = [model.tokenizer.bos, *model.tokenizer.encode("The cow")]
    assert model.generate(ids, max_tokens=12, seed=7) == text
    assert len(model.tokenizer.encode(model.generate("A", max_tokens=10**9))) <= 2 * 128


def test_loss_and_logits_are_those_of_the_network(runs: Home) -> None:
    model, text = mlxchat.load("quickstart"), "The cow says moo. Is that so?"
    ids = [model.tokenizer.bos, *model.tokenizer.encode(text)]
    logits = np.array(model.logits(text), np.float64)
    assert logits.shape == (len(ids), model.config.vocab_size)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(logs[:-1], np.array(ids)[1:, None], axis=-1)
    loss = model.loss(text)
    assert loss.tokens == len(ids) - 1
    assert loss.nats_per_token == pytest.approx(nats.mean(), rel=1e-5)
    assert loss.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / len(text), rel=1e-5)
    assert model.loss(ids) == loss


def test_the_loss_of_a_long_text_is_that_of_its_pieces(runs: Home) -> None:
    model = mlxchat.load("quickstart")
    ids = ([model.tokenizer.bos] + model.tokenizer.encode("The cow says moo. ") * 100)[:300]
    pieces = [model.loss(ids[start : start + 129]) for start in (0, 128, 256)]
    whole = model.loss(ids)
    assert whole.tokens == 299
    nats = sum(piece.nats_per_token * piece.tokens for piece in pieces)
    assert whole.nats_per_token == pytest.approx(nats / 299, rel=1e-6)


def test_a_quantized_copy_leaves_the_model_as_it_was(runs: Home) -> None:
    model = mlxchat.load("quickstart")
    before = model.loss("The cow")
    small = model.quantize(4)
    assert model.loss("The cow") == before
    assert small.name == "quickstart-4bit"
    assert small.loss("The cow") != before
    small.generate("The cow", max_tokens=2)  # which needs the weights in another form
    folder = small.save()
    assert folder == store.directory(runs.runs / "quickstart-4bit", 4)
    again = mlxchat.load("quickstart-4bit")
    assert again.loss("The cow") == small.loss("The cow")
    with pytest.raises(mlxchat.ConfigError, match="quantized already"):
        again.quantize(4)


def test_a_model_is_saved_by_name_or_in_a_folder(runs: Home, tmp_path: Path) -> None:
    model = mlxchat.load("quickstart-sft")
    assert model.save("cow").parent == runs.finetuned / "cow"
    folder = model.save(tmp_path / "models" / "cow")
    assert mlxchat.load(folder).loss("The cow") == model.loss("The cow")
    assert mlxchat.load(tmp_path / "models" / "cow").conversational
    for place in ("cow", tmp_path / "models" / "cow"):
        with pytest.raises(mlxchat.ConfigError, match="already"):
            model.save(place)


def test_an_exported_model_is_imported(runs: Home, tmp_path: Path) -> None:
    model = mlxchat.load("quickstart-sft")
    folder = model.export("transformers", tmp_path / "out")
    assert json.loads((folder / layout.CONFIG).read_text())["model_type"] == "nanochat"
    imported = mlxchat.import_model(folder, "back")
    assert imported.name == "back"
    assert imported.loss("The cow") == model.loss("The cow")
    with pytest.raises(mlxchat.CheckpointError, match="already exists"):
        model.export("transformers", tmp_path / "out")
    with pytest.raises(mlxchat.CheckpointError, match="quantized"):
        model.quantize(4).export("transformers", tmp_path / "other")
    assert model.quantize(4).export("mlx-lm", tmp_path / "small").is_dir()


# ---- a run ---------------------------------------------------------------------------------------


def interrupted(kind: str) -> None:
    """Leave a run's loop in the middle, as ``break`` or Ctrl-C in a cell of a notebook does."""
    for event in mlxchat.pretrain(**TINY, model_tag="left"):
        if isinstance(event, mlxchat.Stepped) and event.step == 3:
            if kind == "break":
                break
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [slow("break"), "interrupt"])
def test_a_run_that_is_left_can_be_resumed(kind: str, prepared_home: Path) -> None:
    threads, kept = set(threading.enumerate()), []
    try:
        interrupted(kind)
    except KeyboardInterrupt as error:
        kept.append(error)  # as a notebook keeps the last traceback
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)  # its batch is finished, not waited for
        assert not thread.is_alive()
    folder = Home(prepared_home).runs / "left"
    assert store.steps(folder) == [2]  # nothing more was saved
    left = list(mlxchat.pretrain(**TINY, model_tag="left"))
    assert [event.step for event in left if isinstance(event, mlxchat.Stepped)] == [3, 4]
    straight = list(mlxchat.pretrain(**TINY, model_tag="straight"))
    assert isinstance(straight[-1], mlxchat.Ended)
    files = [store.directory(run, 4) / layout.MODEL for run in (folder, folder.parent / "straight")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ctrl_c_within_a_step_leaves_a_run_that_can_be_resumed(prepared_home: Path) -> None:
    settings = {**TINY, "num_iterations": 100_000, "eval_every": 0, "model_tag": "long"}
    ctrl_c = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        for event in mlxchat.pretrain(**settings):
            if isinstance(event, mlxchat.Stepped) and event.step == 3:
                ctrl_c.start()
    saved = store.steps(Home(prepared_home).runs / "long")[-1]
    resumed = mlxchat.pretrain(**settings)
    steps = (event.step for event in resumed if isinstance(event, mlxchat.Stepped))
    assert next(steps) == saved + 1
    resumed.close()


def test_a_run_that_is_asked_to_stop_saves(prepared_home: Path) -> None:
    seen: list[mlxchat.Event] = []
    for event in mlxchat.pretrain(
        **{**TINY, "save_every": 0},
        model_tag="stopped",
        stop=lambda: any(isinstance(event, mlxchat.Stepped) for event in seen),
    ):
        seen.append(event)
    assert isinstance(seen[-1], mlxchat.Ended)
    assert seen[-1].reason == "interrupted"
    assert store.steps(Home(prepared_home).runs / "stopped") == [seen[-1].step]


def test_closing_before_the_first_event_does_nothing(home: Path) -> None:
    mlxchat.pretrain(**TINY).close()
    assert not home.exists()


def test_reports_of_other_threads_come_before_the_next_event() -> None:
    def begin(report: events.Report) -> Iterator[events.Event]:
        def download() -> None:
            for done in range(100):
                report(Progressed(0.0, "shard", done + 1, 100, "bytes"))
            report(Noted(0.0, "downloaded"))

        yield Noted(0.0, "begin")
        thread = threading.Thread(target=download)
        thread.start()
        thread.join()
        yield Noted(0.0, "end")
        report(Noted(0.0, "closed"))

    told = [
        event.text if isinstance(event, Noted) else event.done for event in api._one_stream(begin)
    ]
    assert told == ["begin", 100, "downloaded", "end", "closed"]


# ---- errors --------------------------------------------------------------------------------------


def test_an_unknown_model_is_an_error_that_lists_the_runs(runs: Home) -> None:
    with pytest.raises(mlxchat.NotFound, match=r"quickstert(.|\n)*quickstart, quickstart-sft"):
        mlxchat.load("quickstert")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"depht": 2}, r"no setting `depht`\.\nDid you mean `depth`"),
        ({"lora": {"rnk": 2}}, r"`lora` has no setting 'rnk'\.\nDid you mean rank\?"),
        ({"lora": {"x": 2}}, r"`lora` has no setting 'x'\.\nIt has: rank, "),
        ({"lora": {"rank": "big"}}, r"`lora`: rank = 'big': input should be .*\nrank: "),
        ({"lora": 3}, r"`lora=3`: "),
        ({"depth": 0}, r"`depth=0`: input should be greater than or equal to 1"),
        ({"depth": "many"}, r"`depth=many`: "),
        ({"dataset": "../x"}, r"`dataset=\.\./x`: only letters, digits"),
        ({"arch": "classic", "scalar_lr": 1.0}, "scalar_lr"),
        ({"budget": "soon"}, "soon"),
    ],
)
def test_wrong_settings_are_config_errors_that_name_them(
    settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(mlxchat.ConfigError, match=problem):
        mlxchat.pretrain(**settings)


@pytest.mark.slow
def test_a_missing_model_is_an_error_of_iterating(runs: Home) -> None:
    tuning = mlxchat.fine_tune(source="nope", data=["builtin"])
    for run in (mlxchat.pretrain(init_from="nope"), tuning):
        with pytest.raises(mlxchat.NotFound, match="nope"):
            list(run)


def test_logits_go_on_beyond_the_context(runs: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlxchat.load("quickstart")
    ids = [1, *range(5, 250)]
    assert len(ids) > model.config.sequence_len
    logits = np.array(model.logits(ids))
    assert logits.shape == (len(ids), model.config.vocab_size)
    assert np.allclose(logits[:100], np.array(model.logits(ids[:100])), atol=1e-4)
    monkeypatch.setattr("mlxchat.trained.LARGEST_ARRAY", 200 * model.config.padded_vocab_size)
    with pytest.raises(
        mlxchat.ConfigError, match=r"246 tokens, which is too many(.|\n)*200 tokens at most"
    ):
        model.logits(ids)


def test_a_config_object_is_instead_of_settings() -> None:
    config = mlxchat.PretrainConfig(depth=1)
    with pytest.raises(
        mlxchat.ConfigError, match="`seed` cannot be combined with a PretrainConfig"
    ):
        mlxchat.pretrain(config, seed=1)
    with pytest.raises(mlxchat.ConfigError, match="is not of type SftConfig"):
        mlxchat.fine_tune(config)  # type: ignore[arg-type]


def test_wrong_arguments_of_a_model_are_config_errors(runs: Home) -> None:
    model = mlxchat.load("quickstart")
    for call, problem in [
        (lambda: model.generate("A", temperature=-1), "`temperature=-1`"),
        (lambda: model.generate("A", topk=3), "Did you mean `top_k`"),
        (lambda: model.generate("moo " * 500), "context is 128"),
        (lambda: model.generate([]), "not valid token ids"),
        (lambda: model.logits([300]), "not valid token ids"),
        (lambda: model.generate([1.5]), "not valid token ids"),  # type: ignore[list-item]
        (lambda: model.generate("A", seed=-1), "`seed=-1`"),
        (lambda: model.generate("A", seed=2**64), "`seed=18446744073709551616`"),
        (lambda: model.generate("A", max_tokens=-1), "`max_tokens=-1`"),
        (lambda: model.stream("A", max_tokens=0), "`max_tokens=0`"),
        (lambda: model.chat(max_tokens=0), "`max_tokens=0`"),
        (lambda: model.chat(seed=-1), "`seed=-1`"),
        (lambda: model.quantize(7), "`bits=7`"),
        (lambda: model.export("onnx"), r"`to=onnx`(.|\n)*mlx-lm, transformers, nanochat, gguf"),
        (lambda: model.export("mlx-lm", dtype="int8"), r"`dtype=int8`(.|\n)*float32, bfloat16"),
        (lambda: model.export("mlx-lm", dtype="int8x"), "`dtype=int8x`"),
        (lambda: model.save("a b"), "cannot be the name"),
        (lambda: model.save("quickstart-sft"), "There is already a run called quickstart-sft"),
    ]:
        with pytest.raises(mlxchat.ConfigError, match=problem):
            call()
    for text in ("", [5], [5, model.tokenizer.bos]):
        with pytest.raises(mlxchat.DataError, match=r"too short(.|\n)*two tokens"):
            model.loss(text)


# ---- examples ------------------------------------------------------------------------------------

SOURCE = Path(mlxchat.__file__).parent
WITH_EXAMPLES = [
    ".".join(("mlxchat", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings(
    module: str, runs: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chats(tmp_path)
    made_bundle(tmp_path)
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


def test_a_path_names_a_model_or_a_file_as_text_does(runs: Home, tmp_path: Path) -> None:
    folder, file = store.directory(runs.finetuned / "quickstart-sft", 2), tmp_path / "chats.jsonl"
    config = validated(SftConfig, {"source": folder, "data": [file, "builtin"]})
    assert config.source == str(folder)
    assert config.data == [str(file), "builtin"]
    assert validated(PretrainConfig, {"data_dir": tmp_path}).data_dir == tmp_path


def test_zero_bits_are_refused_as_any_other_number_of_bits() -> None:
    with pytest.raises(mlxchat.ConfigError, match="There is no quantization with `bits=0`"):
        Quantization(bits=0)
