"""Pickles are read as data: right values, and no harm."""

import collections
import copyreg
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_pickles import EXTENSION, greedy, malformed, running, text

from mlxchat.errors import MlxchatError
from mlxchat.interop import pickles
from mlxchat.interop.pickles import Function, Instance

PATH = Path("some.pkl")
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(2**63), 2**63 - 1) | st.binary(), inner)
    ),
    max_leaves=20,
)


class Versions(dict[Any, Any], Instance):
    pass


ADMITTED = {
    ("collections", "OrderedDict"): Function(lambda arguments: Versions()),
    ("torch", "float32"): "float32",
}


def load(data: bytes) -> Any:
    return pickles.read_pickle(data, PATH, ADMITTED)


def assert_refused(data: bytes) -> MlxchatError:
    with pytest.raises(MlxchatError) as caught:
        load(data)
    error = caught.value
    assert str(PATH) in error.problem and error.remedy
    assert error.problem.isprintable() and len(error.problem) < 300
    return error


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", EXTENSION)


@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    if protocol == 2:  # which has no bytes
        value = repr(value)
    assert load(pickle.dumps(value, protocol)) == value


def test_shared_values_stay_shared() -> None:
    shared = [1.5]
    first, second = load(pickle.dumps((shared, shared)))
    assert first is second


def test_admitted_names_are_values_and_functions() -> None:
    ordered = collections.OrderedDict(a=1)
    ordered.__dict__["_metadata"] = {"version": 2}
    for protocol in (2, 4):
        value = load(pickle.dumps([ordered], protocol))[0]
        assert value == {"a": 1} and value.state == {"_metadata": {"version": 2}}
    assert load(b"ctorch\nfloat32\n.") == "float32"


def test_persistent_ids_are_resolved() -> None:
    assert pickles.read_pickle(text("x") + b"Q.", PATH, {}, lambda identity: (identity, 1)) == (
        "x",
        1,
    )


@pytest.mark.parametrize("name", running(Path()))
def test_no_code_is_run(name: str, tmp_path: Path, extension: None) -> None:
    error = assert_refused(running(tmp_path / "marker")[name])
    assert "refused" in error.problem and "None of its code was run" in error.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", running(Path()))
def test_refused_pickles_would_run_code_in_the_pickle_module(name: str, tmp_path: Path) -> None:
    script = (
        "import copyreg, pickle, sys\n"
        f"copyreg.add_extension('os', 'mkdir', {EXTENSION})\n"
        "pickle.loads(sys.stdin.buffer.read())\n"
    )
    program = running(tmp_path / "marker")[name]
    subprocess.run([sys.executable, "-c", script], input=program, capture_output=True, check=False)
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize("name", greedy())
def test_pickles_that_exhaust_memory_or_time_are_refused(name: str) -> None:
    assert_refused(greedy()[name])


@pytest.mark.parametrize("name", malformed())
def test_instructions_that_no_writer_uses_are_refused(name: str) -> None:
    assert_refused(malformed()[name])


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (b"cos\nsystem\n.", "os.system"),
        (b"ccollections\nOrderedDict.__init__.__globals__\n.", "OrderedDict.__init__.__globals__"),
        (b"ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"cnumpy.core.multiarray\n_reconstruct\n.", "numpy.core.multiarray._reconstruct"),
        (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        (b"ctorch\nOrderedDict\n.", "torch.OrderedDict"),
        (b"c\nsystem\n.", ".system"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x82\xf0.", "EXT1"),
        (b"Pid\n.", "PERSID"),
        (b"\xfe.", "0xfe"),
    ],
)
def test_the_error_names_the_refused_global(program: bytes, named: str) -> None:
    assert named in assert_refused(program).problem


@pytest.mark.parametrize(
    "program",
    [
        b"ccollections\nOrderedDict\n)R}b}b.",  # a second state
        b"ccollections\nOrderedDict\n}b.",  # of the class
        b"ctorch\nfloat32\n)R.",
        b"ctorch\nfloat32\n)\x81.",
        b"ctorch\nfloat32\n}b.",
        b"ccollections\nOrderedDict\n)R)R.",  # call of an instance
    ],
)
def test_admitted_things_are_used_as_meant(program: bytes) -> None:
    assert "refused" in assert_refused(program).problem


def test_a_state_changes_no_attribute() -> None:
    state = pickle.EMPTY_DICT + text("__class__") + b"ctorch\nfloat32\ns"
    value = load(b"ccollections\nOrderedDict\n)R" + state + b"b.")
    assert type(value) is Versions and value.state == {"__class__": "float32"}


def test_the_number_of_instructions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 100)
    assert load(b"\x80\x02" * 98 + b"N.") is None
    assert "100 instructions" in assert_refused(b"\x80\x02" * 99 + b"N.").problem
    monkeypatch.setattr(pickles, "MOST_BYTES", 10)
    assert "10 bytes" in assert_refused(bytes(11)).problem


EXAMPLE = pickle.dumps([{"a": (1, 2.5, "é" * 99), 7: [None, b"x", 2**40]}, "a"], 4)


def test_truncated_pickles_are_refused() -> None:
    for end in range(len(EXAMPLE)):
        assert_refused(EXAMPLE[:end])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    value_or_refused(data)


@given(
    st.lists(
        st.binary(min_size=1, max_size=1)
        | st.sampled_from([b"cos\nsystem\n", b"ccollections\nOrderedDict\n", text("a")]),
        max_size=60,
    )
)
def test_any_instructions_are_a_value_or_refused(parts: list[bytes]) -> None:
    value_or_refused(b"".join(parts) + b".")


@given(st.integers(0, len(EXAMPLE) - 1), st.integers(1, 255))
def test_changed_pickles_are_a_value_or_refused(place: int, change: int) -> None:
    changed = bytearray(EXAMPLE)
    changed[place] ^= change
    value_or_refused(bytes(changed))


def value_or_refused(data: bytes) -> None:
    try:
        value = load(data)
    except MlxchatError as error:
        assert error.problem.isprintable() and error.remedy
        return
    plain = (type(None), bool, int, float, str, bytes, list, tuple, dict, Function)
    assert isinstance(value, plain)
    assert os.system is not value
