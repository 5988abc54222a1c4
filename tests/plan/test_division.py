"""How a step is divided to fit into memory, and when none fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.units import UNIT_BYTES, spell_size, to_bytes
from mlxchat.counts import round_size
from mlxchat.errors import MlxchatError
from mlxchat.plan.division import MARGIN
from mlxchat.plan.memory import Resources, training_bytes
from mlxchat.plan.plan import Plan, plan, refitted

GIB, MIB = UNIT_BYTES["GiB"], UNIT_BYTES["MiB"]
PLENTY = Resources(1024 * GIB, 4, "all", 128)
GPU = Resources(1024 * GIB, 2, "none", 2048)
SMALL = {"depth": 4, "max_seq_len": 512, "total_batch_size": 64 * 512}


def made(resources: Resources = PLENTY, vocab_size: int = 4096, **settings: object) -> Plan:
    return plan(PretrainConfig.model_validate(SMALL | settings), vocab_size, resources)


def test_plenty_of_memory_gives_a_large_batch_without_checkpointing() -> None:
    for resources in (PLENTY, GPU):
        free = made(resources)
        assert (free.device_batch_size, free.accumulation) == (16, 4)
        assert not free.grad_checkpoint
        assert free.chunk_rows == resources.chunk_rows


@pytest.mark.parametrize(
    ("context", "besides", "rows"),
    [(512, 256, 16), (512, 3400, 32), (2048, 256, 8), (2048, 3400, 32), (2048, 0, 1)],
)
def test_the_smallest_batch_within_a_fiftieth_of_the_fastest_is_chosen(
    context: int, besides: int, rows: int
) -> None:
    """Beside its tokens' time, a micro-batch takes that of so many more."""
    resources = GPU._replace(micro_batch_tokens=besides)
    settings = {"max_seq_len": context, "total_batch_size": 64 * context}
    chosen = made(resources, **settings)
    assert chosen.device_batch_size == rows
    largest = made(resources, device_batch_size=32, **settings)
    assert chosen.peak <= largest.peak
    if rows > 1:
        tight = made(resources._replace(memory=int(0.9 * MARGIN * chosen.peak)), **settings)
        assert tight.device_batch_size < rows


@given(st.integers(1, 100), st.floats(0.02, 1.5), st.booleans())
def test_the_chosen_division_fits_and_keeps_the_total_batch(
    rows: int, share: float, gpu: bool
) -> None:
    resources = GPU if gpu else PLENTY
    batch = {"total_batch_size": rows * 512}
    limit = int(share * made(resources, 65_536, **batch).peak)
    try:
        fitting = made(resources, 65_536, memory_limit=f"{limit // MIB}MiB", **batch)
    except MlxchatError as error:
        assert "needs at least" in error.problem
        return
    assert MARGIN * fitting.peak <= limit
    assert fitting.device_batch_size * fitting.accumulation == rows
    assert fitting.tokens_per_step == rows * 512


def test_less_memory_makes_batches_smaller_before_it_checkpoints() -> None:
    most = made(max_seq_len=1024, device_batch_size=32).peak
    batches, twice = [], []
    for share in (1.2, 0.7, 0.4, 0.2, 0.12):
        fitting = made(max_seq_len=1024, memory_limit=f"{int(share * most) // MIB}MiB")
        batches.append(fitting.device_batch_size)
        twice.append(fitting.grad_checkpoint)
    assert batches[0] == 16 > batches[-1] and not twice[0]
    assert batches == sorted(batches, reverse=True)
    assert not any(twice)


def test_short_rows_are_checkpointed_rather_than_computed_one_by_one() -> None:
    short = {"depth": 12, "max_seq_len": 128, "total_batch_size": 64 * 128}
    few = made(device_batch_size=4, grad_checkpoint="off", **short).peak
    tight = made(memory_limit=f"{int(MARGIN * few) // MIB + 1}MiB", **short)
    assert tight.grad_checkpoint and tight.device_batch_size > 4


@pytest.mark.parametrize(("asked", "twice"), [("on", True), ("off", False)])
def test_checkpointing_given_in_the_settings_is_kept(asked: str, twice: bool) -> None:
    for share in (2.0, 0.5):
        limit = int(share * made(grad_checkpoint=asked).peak)
        fitting = made(grad_checkpoint=asked, memory_limit=f"{limit // MIB}MiB")
        assert fitting.grad_checkpoint == twice


def test_a_given_device_batch_size_is_kept_or_refused() -> None:
    assert made(device_batch_size=64).device_batch_size == 64
    whole = made(device_batch_size=64, grad_checkpoint="off").peak
    with pytest.raises(MlxchatError, match="64 rows of 512 tokens at once") as raised:
        made(device_batch_size=64, grad_checkpoint="off", memory_limit=f"{whole // 4 // MIB}MiB")
    options = raised.value.remedy.removeprefix("Use ").removesuffix(".").split(" or ")
    settings = dict(option.strip("`").split("=") for option in options)
    assert settings.keys() >= {"device_batch_size", "memory_limit"}
    for name, value in settings.items():  # each of them works
        works = {"device_batch_size": 64, "grad_checkpoint": "off", name: value}
        made(**{"memory_limit": f"{whole // 4 // MIB}MiB"} | works)


def test_a_model_that_does_not_fit_is_refused_with_its_components() -> None:
    resources = Resources(GIB, 4, "all", 128)
    config = PretrainConfig(depth=20)
    with pytest.raises(MlxchatError, match=r"this machine can spare 1\.1 GB") as raised:
        plan(config, 65_536, resources)
    free = plan(config, 65_536, PLENTY)
    needed = training_bytes(free.model, free, PLENTY)
    for component in ("parameters", "gradients", "optimizer", "accumulation"):
        assert f"{component} {round_size(needed[component])}" in raised.value.problem
    assert "memory_limit" not in raised.value.remedy  # more than the machine has is no help
    depth = int(raised.value.remedy.removeprefix("Use `depth=").removesuffix("`."))
    assert plan(PretrainConfig(depth=depth), 65_536, resources).model.n_layer == depth
    with pytest.raises(MlxchatError):
        plan(PretrainConfig(depth=depth + 2), 65_536, resources)


def test_the_least_limit_is_just_above_the_smallest_possible_peak() -> None:
    large = {"depth": 12, "max_seq_len": 2048, "total_batch_size": 32 * 2048}
    config = PretrainConfig.model_validate(large | {"memory_limit": "least"})
    least = plan(config, 65_536, GPU)
    limit = least.memory_limit
    assert least.grad_checkpoint
    assert MARGIN * least.peak <= limit < 0.5 * made(GPU, 65_536, **large).peak
    below = int(limit / MARGIN)
    with pytest.raises(MlxchatError, match="needs at least"):
        made(GPU, 65_536, **large, memory_limit=f"{below // MIB}MiB")


def test_the_least_limit_of_a_small_model_is_512_mb() -> None:
    small = PretrainConfig.model_validate(SMALL | {"memory_limit": "least"})
    least = plan(small, 4096, PLENTY)
    assert least.memory_limit == 512 * UNIT_BYTES["MB"]
    assert not least.grad_checkpoint and least.device_batch_size > 1


def test_a_saved_run_keeps_its_division_if_it_fits() -> None:
    config = PretrainConfig.model_validate(SMALL)
    saved = plan(config, 4096, PLENTY)
    assert refitted(saved, config, PLENTY) == saved
    tight = PLENTY._replace(memory=saved.peak)  # the margin is for new choices only
    assert refitted(saved, config, tight).division == saved.division
    limited = config.model_copy(update={"memory_limit": "400MB"})
    other = refitted(saved, limited, PLENTY)
    assert MARGIN * other.peak <= 400e6
    assert (other.rows_per_step, other.num_iterations) == (
        saved.rows_per_step,
        saved.num_iterations,
    )
    assert refitted(other, limited, PLENTY) == other
    twice = refitted(saved, config.model_copy(update={"grad_checkpoint": "on"}), PLENTY)
    assert twice.grad_checkpoint and twice.rows_per_step == saved.rows_per_step
    with pytest.raises(MlxchatError, match="needs at least"):
        refitted(saved, config, PLENTY._replace(memory=100 * MIB))


@pytest.mark.parametrize(
    ("text", "size", "canonical"),
    [
        ("12GB", 12 * 10**9, "12GB"),
        ("12GiB", 12 * 2**30, "12GiB"),
        (" 0.5 gb", 5 * 10**8, "0.5GB"),
        ("800mb", 8 * 10**8, "800MB"),
        ("1.5tib", 3 * 2**39, "1.5TiB"),
    ],
)
def test_sizes_are_read_in_every_form(text: str, size: int, canonical: str) -> None:
    assert to_bytes(text) == size
    assert spell_size(text) == canonical
    assert PretrainConfig(memory_limit=text, wired_limit=text).memory_limit == canonical


@pytest.mark.parametrize(
    "text", ["", "12", "GB", "-1GB", "0GB", "0.5MB", "1e3GB", "12 G", "2000TB"]
)
def test_a_malformed_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(MlxchatError, match="is not an amount of memory") as raised:
        PretrainConfig(memory_limit=text)
    assert "12GB" in raised.value.remedy
    with pytest.raises(MlxchatError):
        PretrainConfig(wired_limit="least")
    with pytest.raises(MlxchatError):
        PretrainConfig(memory_limit="auto")


def test_a_wired_limit_is_a_size_or_suits_the_run() -> None:
    limits = [PretrainConfig(wired_limit=limit).wired for limit in (None, "8gb", "auto")]
    assert limits == [None, 8 * 10**9, "auto"]
