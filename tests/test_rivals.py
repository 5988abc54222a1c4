"""The programs of benchmarks/ take turns; the torch rival computes what nanochat does."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.extras import extra

from mlxchat.errors import MlxchatError
from mlxchat.model.config import Architecture, GPTConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

WORKER = """
import sys
from pathlib import Path
import rounds
from mlxchat.errors import MlxchatError

_, name, log, trouble = sys.argv

def note(what):
    with Path(log).open("a") as lines:
        lines.write(f"{name} {what}\\n")

def repeat(times):
    print("what a library prints")
    note(times)
    if trouble == "dies":
        sys.exit(3)
    return 0.1 * times * (2 if name == "slow" else 1)

def build():
    if trouble == "cannot":
        raise MlxchatError("There is no wind.", "Wait.")
    note("built")
    return rounds.Work(repeat, lambda: {"name": name})

rounds.serve(build)
"""


@pytest.fixture
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def rounds(_path: None) -> ModuleType:
    return importlib.import_module("rounds")


class Yard:
    """Programs that do nothing, and what they noted."""

    def __init__(self, rounds: ModuleType, folder: Path) -> None:
        self.rounds, self.log = rounds, folder / "log"
        self.script = folder / "worker.py"
        self.script.write_text(WORKER, "utf-8")

    def program(self, name: str, trouble: str = "none") -> object:
        command = [sys.executable, str(self.script), name, str(self.log), trouble]
        return self.rounds.Program(name, command)

    def noted(self) -> list[str]:
        return self.log.read_text("utf-8").splitlines()


@pytest.fixture
def yard(rounds: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS), *sys.path]))
    return Yard(rounds, tmp_path)


def test_programs_take_turns(yard: Yard) -> None:
    told: list[str] = []
    programs = [yard.program("fast"), yard.program("slow")]
    measured = yard.rounds.alternate(programs, 3, 0.6, 1, told.append)
    building = [line for name in ("fast", "slow") for line in (f"{name} built", *[f"{name} 1"] * 2)]
    assert yard.noted() == building + ["fast 6", "slow 3"] * 3
    fast, slow = measured
    assert fast.seconds == pytest.approx([0.1] * 3)
    assert slow.facts == {"name": "slow"}
    assert fast.first == pytest.approx(0.1)
    assert yard.rounds.ratio(fast.speeds(5), slow.speeds(5)) == pytest.approx(2)
    assert told[-1] == "round 3 of 3"


def test_a_program_that_cannot_work_says_why(yard: Yard) -> None:
    programs = [yard.program("fast"), yard.program("slow", "cannot")]
    with pytest.raises(MlxchatError, match=r"slow: There is no wind\.") as raised:
        yard.rounds.alternate(programs, 1, 0.1, 1, lambda _: None)
    assert raised.value.remedy == "Wait."


def test_a_program_that_ends_early_is_named(yard: Yard) -> None:
    with pytest.raises(MlxchatError, match="slow ended with status 3"):
        yard.rounds.alternate([yard.program("slow", "dies")], 1, 0.1, 1, lambda _: None)


def test_a_table_is_markdown(rounds: ModuleType) -> None:
    rows = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert rounds.table(rows).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | 2 |",
        "| 3 | 4 |",
    ]


@pytest.mark.usefixtures("_path")
def test_batch_sizes_are_set_for_all_or_for_one() -> None:
    training = importlib.import_module("training")
    sizes = training.batch_sizes(["torch-eager=2", "4"])
    assert sizes == {"mlxchat": 4, "torch-eager": 2, "torch-compile": 4}
    assert set(training.batch_sizes(["mlxchat=2"]).values()) == {2, 8}
    for wrong in ("0", "-1", "jax=8", "mlxchat="):
        with pytest.raises(MlxchatError, match="neither a number"):
            training.batch_sizes([wrong])


@pytest.mark.usefixtures("_path")
def test_the_caches_of_kernels_are_empty_only_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = importlib.import_module("training")
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", "warm")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    with training.empty_caches():
        folders = {name: Path(os.environ[name]) for name in training.CACHES}
        assert len({*folders.values()}) == len(training.CACHES)
        assert not any(folder.exists() for folder in folders.values())
    assert os.environ["MLX_PTX_CACHE_DIR"] == "warm"
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.usefixtures("_path")
def test_decoding_is_told_of_the_first_pass_and_of_later_ones(rounds: ModuleType) -> None:
    decoding = importlib.import_module("decoding")
    config = GPTConfig.from_depth(2, vocab_size=512, sequence_len=64)
    facts = {"device": "cpu", "dtype": "float32", "tokens": [1] * 11, "warm_up": 9}
    ours = rounds.Measured("mlxchat", 2.0, (0.1, 0.1), facts)
    rival = rounds.Measured(
        "torch-compile", 0.5, (0.5, 0.5), {**facts, "tokens": [1] * 5 + [2] * 6}
    )
    batch = rounds.Measured("batch", 2.0, (0.2, 0.2), {})
    told = decoding.report(config, 11, [ours, rival, batch], threads=1)
    cells = [[cell.strip() for cell in line.split("|")] for line in told.splitlines()]
    assert [row[4:6] + row[7:9] for row in cells[4:6]] == [
        ["5.0", "100.0", "11/11", "1.00"],
        ["20.0", "20.0", "5/11", "5.00"],
    ]
    assert "tokens/s, 8.0 times one alone; first pass 80, 16.0 times one alone's" in told


@pytest.mark.usefixtures("_path")
def test_times_of_kernels_are_read_from_what_ncu_prints() -> None:
    kernel_times = importlib.import_module("kernel_times")
    metric = "gpu__time_duration.sum"
    names = {
        "rms": "void mlx::core::cu::rms_norm_small<__nv_bfloat16, 8, 4>(const T1 *, unsigned int)",
        "sum": "mlx::core::cu::(anonymous namespace)::sum(float *)",
        "product": "nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNT",
    }
    printed = [
        "==PROF== Connected to process 7 (/usr/bin/python3.12)",
        "what the program prints",
        '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
        f'"0","7","{names["rms"]}","{metric}","us","1,250.00"',
        f'"0","7","{names["rms"]}","launch__registers","register","32"',
        f'"1","7","{names["sum"]}","{metric}","ns","512"',
        f'"2","7","{names["product"]}","{metric}","msecond","2"',
        f'"3","7","{names["rms"].replace("8", "16")}","{metric}","ms","1.5"',
        "==PROF== Disconnected from process 7",
    ]
    totals = kernel_times.by_name(kernel_times.parse(printed))
    assert list(totals.items()) == [
        ("mlx::core::cu::rms_norm_small", pytest.approx([1.25, 1.5])),
        (names["product"], [2]),
        ("mlx::core::cu::sum", pytest.approx([0.000512])),
    ]
    assert kernel_times.report(totals).splitlines()[2:] == [
        "| mlx::core::cu::rms_norm_small | 2 | 2.750 | 57.9% |",
        f"| {names['product']} | 1 | 2.000 | 42.1% |",
        "| mlx::core::cu::sum | 1 | 0.001 | 0.0% |",
        "| all | 4 | 4.751 | 100.0% |",
    ]


@pytest.mark.usefixtures("_path")
def test_the_operations_of_a_prompt_are_counted() -> None:
    decoding = importlib.import_module("decoding")
    config = GPTConfig(sequence_len=8, vocab_size=10, n_layer=1, n_head=1, n_kv_head=1, n_embd=2)
    matrices, head, scores = 12 * 2 * 2, 10 * 2, 2 * (2 + 2) * (3 * 3) // 2
    assert decoding.prefill_flops(config, 3) == 2 * 3 * matrices + 2 * head + scores


@pytest.mark.usefixtures("_path")
@pytest.mark.slow
@pytest.mark.parametrize(("arch", "quantities"), [("classic", 9), ("modern", 8)])
def test_torch_computes_what_nanochat_does(arch: str, quantities: int) -> None:
    extra("torch")
    extra("safetensors")
    golden = importlib.import_module("rivals.golden")
    differences = list(golden.differences(arch, compiled=False, device="cpu"))
    assert len(differences) == quantities
    assert [difference for difference in differences if not difference.small] == []


@pytest.mark.usefixtures("_path")
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_torch_trains_in_half_precision_as_in_float32(arch: Architecture) -> None:
    torch = extra("torch")
    steps = importlib.import_module("rivals.torch_training")
    network = importlib.import_module(f"rivals.torch_{arch}").GPT
    cpu, ids = torch.device("cpu"), torch.arange(300)[None] % 64
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):  # on CUDA the latter is the one
        torch.manual_seed(0)
        model = network(GPTConfig.from_depth(4, 64, 300, head_dim=64, arch=arch))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)
        steps.place_for_training(model, cpu, dtype, compiled=False)
        optimizers = steps.nanochats_optimizers(model, dtype, compiled=False)
        trainer = steps.Trainer(model, optimizers, arch, dtype, compiled=False)
        trainer.gradients(ids, ids.roll(-1))
        gradients.append({name: p.grad.float() for name, p in model.named_parameters()})
        trainer.update()
        assert trainer.step(ids, ids.roll(-1)).isfinite()
    exact, half = gradients
    for name, gradient in exact.items():
        assert (half[name] - gradient).norm() < 0.1 * gradient.norm(), name


@pytest.mark.usefixtures("_path")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_torch_sees_the_same_through_a_mask_and_through_blocks() -> None:
    torch = extra("torch")
    modern = importlib.import_module("rivals.torch_modern")
    config = GPTConfig.from_depth(4, vocab_size=64, sequence_len=300, head_dim=64, arch="modern")
    assert config.windows == (128, 128, 128, 300)
    model = modern.GPT(config)
    ids = torch.arange(300)[None] % 64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        masked = model(ids)
        model.fuse_windows(torch.device("cpu"))
        assert [type(see).__name__ for see in model.see] == ["SeeBlocks"] * 3 + ["SeeAll"]
        assert torch.allclose(model(ids), masked, atol=1e-4)


@pytest.mark.usefixtures("_path")
@pytest.mark.slow
def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    extra("torch")
    rival = importlib.import_module("rivals.torch_training")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MlxchatError, match=r"needs a C\+\+ compiler") as raised:
        rival.require_compiler()
    assert "torch-compile" in raised.value.remedy
