"""How a step is divided to fit into memory, and which steps are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.units import BYTES, round_size, spell_size, to_bytes
from mlxchat.errors import MlxchatError
from mlxchat.plan.memory import MARGIN, Capacity, memory_limit
from mlxchat.plan.plan import Plan, plan, refitted

GIB, MIB = BYTES["GiB"], BYTES["MiB"]
PLENTY = Capacity(1024 * GIB, 4, "all", 128)
GPU = Capacity(1024 * GIB, 2, "none", 2048)
SMALL = {"depth": 4, "max_seq_len": 512, "total_batch_size": 64 * 512}


def made(capacity: Capacity = PLENTY, vocab_size: int = 4096, **settings: object) -> Plan:
    return plan(PretrainConfig.model_validate(SMALL | settings), vocab_size, capacity)


def peak(of: Plan, capacity: Capacity = PLENTY) -> int:
    return of.memory(capacity)["peak"]


def test_with_plenty_of_memory_the_largest_batch_and_nothing_computed_twice() -> None:
    for capacity in (PLENTY, GPU):
        free = made(capacity)
        assert (free.device_batch_size, free.accumulation) == (32, 2)
        assert not free.grad_checkpoint
        assert free.loss_rows == capacity.loss_rows


@given(st.integers(1, 100), st.floats(0.02, 1.5), st.booleans())
def test_what_is_chosen_fits_and_the_total_is_exact(rows: int, share: float, gpu: bool) -> None:
    capacity = GPU if gpu else PLENTY
    batch = {"total_batch_size": rows * 512}
    limit = int(share * peak(made(capacity, 65_536, **batch), capacity))
    try:
        fitting = made(capacity, 65_536, memory_limit=f"{limit // MIB}MiB", **batch)
    except MlxchatError as error:
        assert "takes at least" in error.problem
        return
    assert MARGIN * peak(fitting, capacity) <= limit
    assert fitting.device_batch_size * fitting.accumulation == rows
    assert fitting.tokens_per_step == rows * 512


def test_less_memory_costs_the_cheapest_first() -> None:
    """Smaller batches: rows this long are not computed twice."""
    most = peak(made(max_seq_len=1024))
    batches, twice = [], []
    for share in (1.2, 0.7, 0.4, 0.2, 0.12):
        fitting = made(max_seq_len=1024, memory_limit=f"{int(share * most) // MIB}MiB")
        batches.append(fitting.device_batch_size)
        twice.append(fitting.grad_checkpoint)
    assert batches[0] == 32 and not twice[0]
    assert batches == sorted(batches, reverse=True)
    assert not any(twice)


def test_rows_that_are_short_are_computed_twice_rather_than_alone() -> None:
    short = {"depth": 12, "max_seq_len": 128, "total_batch_size": 64 * 128}
    few = peak(made(device_batch_size=4, grad_checkpoint="off", **short))
    tight = made(memory_limit=f"{int(MARGIN * few) // MIB + 1}MiB", **short)
    assert tight.grad_checkpoint and tight.device_batch_size > 4


@pytest.mark.parametrize(("asked", "twice"), [("on", True), ("off", False)])
def test_checkpointing_that_is_asked_for_is_kept(asked: str, twice: bool) -> None:
    for share in (2.0, 0.5):
        limit = int(share * peak(made(grad_checkpoint=asked)))
        fitting = made(grad_checkpoint=asked, memory_limit=f"{limit // MIB}MiB")
        assert fitting.grad_checkpoint == twice


def test_a_device_batch_that_is_given_is_kept_or_refused() -> None:
    assert made(device_batch_size=64).device_batch_size == 64
    whole = peak(made(device_batch_size=64, grad_checkpoint="off"))
    with pytest.raises(MlxchatError, match="64 rows of 512 tokens at once") as raised:
        made(device_batch_size=64, grad_checkpoint="off", memory_limit=f"{whole // 4 // MIB}MiB")
    settings = raised.value.remedy.removeprefix("Use ").removesuffix(".").split(" or ")
    assert {setting.split("=")[0] for setting in settings} >= {
        "`device_batch_size",
        "`memory_limit",
    }
    for setting in settings:  # each of them works
        name, value = setting.strip("`").split("=")
        works = {"device_batch_size": 64, "grad_checkpoint": "off", name: value}
        made(**{"memory_limit": f"{whole // 4 // MIB}MiB"} | works)


def test_a_model_that_does_not_fit_is_refused_with_its_components() -> None:
    capacity = Capacity(GIB, 4, "all", 128)
    config = PretrainConfig(depth=20)
    with pytest.raises(MlxchatError, match=r"this machine can spare 1\.0 GiB") as raised:
        plan(config, 65_536, capacity)
    needed = plan(config, 65_536, PLENTY).memory(PLENTY)
    for component in ("parameters", "gradients", "optimizer", "accumulation"):
        assert f"{component} {round_size(needed[component])}" in raised.value.problem
    assert "memory_limit" not in raised.value.remedy  # more than the machine has is no help
    depth = int(raised.value.remedy.removeprefix("Use `depth=").removesuffix("`."))
    assert plan(PretrainConfig(depth=depth), 65_536, capacity).model.n_layer == depth
    with pytest.raises(MlxchatError):
        plan(PretrainConfig(depth=depth + 2), 65_536, capacity)


def test_the_least_is_near_what_nothing_less_is_possible_than() -> None:
    large = {"depth": 12, "max_seq_len": 2048, "total_batch_size": 32 * 2048}
    config = PretrainConfig.model_validate(large | {"memory_limit": "least"})
    least = plan(config, 65_536, GPU)
    limit = memory_limit(config, least.model, least.rows, GPU)
    assert least.grad_checkpoint
    assert MARGIN * peak(least, GPU) <= limit < 0.5 * peak(made(GPU, 65_536, **large), GPU)
    below = int(limit / MARGIN)
    with pytest.raises(MlxchatError, match="takes at least"):
        made(GPU, 65_536, **large, memory_limit=f"{below // MIB}MiB")


def test_of_a_small_model_no_less_is_asked_than_anyone_has() -> None:
    small = PretrainConfig.model_validate(SMALL | {"memory_limit": "least"})
    least = plan(small, 4096, PLENTY)
    assert memory_limit(small, least.model, least.rows, PLENTY) == 512 * MIB
    assert not least.grad_checkpoint and least.device_batch_size > 1


def test_a_saved_run_keeps_its_batches_if_they_fit() -> None:
    config = PretrainConfig.model_validate(SMALL)
    saved = plan(config, 4096, PLENTY)
    assert refitted(saved, config, PLENTY) is saved
    tight = PLENTY._replace(memory=peak(saved))  # the margin is for new choices only
    assert refitted(saved, config, tight) is saved
    limited = config.model_copy(update={"memory_limit": "400MB"})
    other = refitted(saved, limited, PLENTY)
    assert MARGIN * peak(other) <= 400e6
    assert (other.rows, other.num_iterations) == (saved.rows, saved.num_iterations)
    assert refitted(other, limited, PLENTY) is other
    twice = refitted(saved, config.model_copy(update={"grad_checkpoint": "on"}), PLENTY)
    assert twice.grad_checkpoint and twice.rows == saved.rows
    with pytest.raises(MlxchatError, match="takes at least"):
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
def test_every_form_of_a_size_is_read(text: str, size: int, canonical: str) -> None:
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


def test_sizes_are_rounded_for_display() -> None:
    assert [round_size(n) for n in (602 * MIB, GIB, 3 * GIB // 2)] == [
        "602 MiB",
        "1.0 GiB",
        "1.5 GiB",
    ]
