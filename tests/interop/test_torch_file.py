"""Files of torch are read and written without torch, and hostile ones refused."""

import pickle
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.extras import extra
from support.hostile_pickles import greedy, malformed, running, text
from support.places import TESTS

from mlxchat.errors import MlxchatError
from mlxchat.interop import pickles, stored_zip, torch_file
from mlxchat.interop.torch_file import TorchTensor
from mlxchat.runtime import mx

DATA = TESTS / "interop" / "torch_files"  # made by torch: see make_torch_files.py there
NUMBERS = (np.arange(12, dtype=np.float32) / 8).reshape(3, 4)


def listed(value: Any) -> Any:
    """A value with tensors as their dtype and numbers."""
    if isinstance(value, TorchTensor | mx.array):
        array = value.read() if isinstance(value, TorchTensor) else value
        assert array.dtype == value.dtype and array.shape == value.shape
        bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        return str(value.dtype), value.shape, np.array(bits).tobytes()
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(listed, value))
    return value


def tensor(
    *,
    kind: str = "FloatStorage",
    key: bytes = text("0"),
    count: int = 12,
    offset: int = 0,
    shape: tuple[Any, ...] = (3, 4),
    strides: tuple[Any, ...] = (4, 1),
) -> bytes:
    """A pickle of a tensor, with things in it as they may not be."""
    storage = text("storage") + f"ctorch\n{kind}\n".encode() + key + text("cpu")
    rest = b"".join(pickle.dumps(part, 2)[2:-1] for part in (offset, shape, strides, False))
    identity = pickle.MARK + storage + pickle.dumps(count, 2)[2:-1] + pickle.TUPLE
    arguments = pickle.MARK + identity + pickle.BINPERSID + rest + pickle.EMPTY_DICT + pickle.TUPLE
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + pickle.REDUCE + b"."


def torch_zip(folder: Path, program: bytes, **others: bytes) -> Path:
    """A file as torch writes it, with one storage of 12 numbers; ``others`` change entries."""
    contents = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
    contents |= {"data/0": NUMBERS.tobytes(), **others}
    path = folder / "some.pt"
    stored_zip.write_zip(path, ((f"some/{name}", memoryview(b)) for name, b in contents.items()))
    return path


def patched(path: Path, name: str, offset: int, form: str, value: int) -> Path:
    """Change a field of an entry in the zip's directory."""
    content = bytearray(path.read_bytes())
    record = content.rindex(name.encode()) - 46
    assert content[record : record + 4] == b"PK\x01\x02"
    struct.pack_into(form, content, record + offset, value)
    path.write_bytes(content)
    return path


FLAGS, METHOD, CRC, COMPRESSED, SIZE, HEADER = 8, 10, 16, 20, 24, 42  # in a directory's record


def assert_refused(path: Path) -> MlxchatError:
    with pytest.raises(MlxchatError) as caught:
        listed(torch_file.read_torch(path))
    error = caught.value
    assert str(path) in error.problem and error.remedy
    assert error.problem.isprintable() and len(error.problem) < 500
    return error


def test_a_state_dict_of_torch_is_read() -> None:
    value = torch_file.read_torch(DATA / "state_dict.pt")
    assert list(value) == ["c_q.weight", "wte.weight"]
    assert value["c_q.weight"].dtype == mx.float32
    assert np.array_equal(np.array(value["c_q.weight"].read()), NUMBERS)
    embedding = value["wte.weight"].read()
    assert embedding.dtype == mx.bfloat16
    assert np.array_equal(np.array(embedding.astype(mx.float32)), -NUMBERS)


def test_optimizers_of_torch_are_read() -> None:
    adamw, muon = torch_file.read_torch(DATA / "optimizers.pt")
    assert [group["lr"] for group in adamw["param_groups"]] == [0.25, 0.5]
    assert adamw["param_groups"][0]["betas"] == (0.75, 0.5)
    assert adamw["state"][0]["step"].read().item() == 1
    assert np.allclose(np.array(adamw["state"][0]["exp_avg"].read()), 0.25)
    assert adamw["state"][1]["exp_avg_sq"].dtype == mx.bfloat16
    assert np.array_equal(np.array(muon["state"][0]["momentum_buffer"].read()), NUMBERS)


def test_every_kind_of_value_of_torch_is_read() -> None:
    value = torch_file.read_torch(DATA / "everything.pt")
    expected = {
        "transposed": NUMBERS.T,
        "rows": NUMBERS[1:],
        "column": NUMBERS[:, 2],
        "scalar": np.float32(3),
        "empty": np.zeros((0, 4), np.float32),
        "parameter": NUMBERS,
    }
    for name, numbers in expected.items():
        assert value[name].shape == numbers.shape, name
        assert np.array_equal(np.array(value[name].read()), numbers), name
    for name, tensor in value["dtypes"].items():
        array = tensor.read()
        assert array.dtype == getattr(mx, name if name != "bool" else "bool_")
        assert array.tolist() == [0, 1, 1]
    assert value["plain"] == (None, True, 3, 2**40, -(2**40), 1.5, "é", [], {}, ())
    assert (value["dtype"], value["device"], value["shape"]) == (mx.bfloat16, "cpu", (3, 4))


def test_the_format_before_1_6_is_refused_with_a_remedy() -> None:
    assert "torch.save" in assert_refused(DATA / "before_1_6.pt").remedy


def everything_writable() -> dict[str, Any]:
    half = mx.array([[1.5, -0.0], [float("inf"), 3e-39]]).astype(mx.bfloat16)
    dtypes = [mx.float16, mx.int64, mx.int32, mx.int16, mx.int8, mx.uint8, mx.bool_]
    return {
        "transformer.h.0.attn.c_q.weight": mx.array(NUMBERS),
        "bfloat16": half,
        "not a number": mx.array([0x7FC1, 0xFF80], mx.uint16).view(mx.bfloat16),
        "transposed": mx.array(NUMBERS).T,
        "part": mx.array(NUMBERS)[1:, ::2],
        "scalar": mx.array(7, mx.int64),
        "empty": mx.zeros((0, 3)),
        "dtypes": [mx.array([0, 1]).astype(dtype) for dtype in dtypes],
        "state": {0: {"step": 5, "lr": 0.25}, 1: (1, -1, 2**31, -(2**63), 255, 128, 0)},
        "plain": [None, True, False, "é", [], {}, (), float("inf")],
    }


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    value = everything_writable()
    torch_file.write_torch(tmp_path / "a.pt", value)
    assert listed(torch_file.read_torch(tmp_path / "a.pt")) == listed(value)


def test_the_same_value_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        torch_file.write_torch(tmp_path / name, everything_writable())
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_storages_are_aligned_and_the_zip_is_sound(tmp_path: Path) -> None:
    torch_file.write_torch(tmp_path / "a.pt", everything_writable())
    assert all(e.start % 64 == 0 for e in stored_zip.zip_entries(tmp_path / "a.pt").values())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("value", [{1, 2}, b"x", mx.array([1], mx.uint32), [object()], 1j])
def test_other_values_cannot_be_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="torch file"):
        torch_file.write_torch(tmp_path / "a.pt", value)


@pytest.mark.slow
def test_torch_reads_a_written_file(tmp_path: Path) -> None:
    torch = extra("torch")
    value = everything_writable()
    torch_file.write_torch(tmp_path / "a.pt", value)
    loads = [{"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}]
    for options in loads:
        found = torch.load(tmp_path / "a.pt", **options)
        torch.save(found, tmp_path / "b.pt")
        assert listed(torch_file.read_torch(tmp_path / "b.pt")) == listed(value)
        assert found["bfloat16"].dtype == torch.bfloat16
        assert found["state"] == value["state"]


@pytest.mark.slow
def test_a_file_of_the_installed_torch_is_read(tmp_path: Path) -> None:
    torch = extra("torch")
    for path in DATA.glob("*.pt"):
        torch.save(torch.load(path, weights_only=True), tmp_path / path.name)
        if path.name != "before_1_6.pt":
            assert listed(torch_file.read_torch(tmp_path / path.name)) == listed(
                torch_file.read_torch(path)
            )


def test_a_tensor_is_read_in_little_memory(tmp_path: Path) -> None:
    size = 2**23
    torch_file.write_torch(tmp_path / "a.pt", [mx.full((size // 4,), float(i)) for i in range(6)])
    tracemalloc.start()
    tensors = torch_file.read_torch(tmp_path / "a.pt")
    assert [tensor.read()[-1].item() for tensor in tensors] == list(range(6))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size + 2 * stored_zip.PIECE_BYTES + 2**20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 13}, "48 bytes, not 52"),
        ({"count": 11}, "48 bytes, not 44"),
        ({"count": -12}, "48 bytes, not -48"),
        ({"count": 2**62}, "48 bytes"),
        ({"kind": "DoubleStorage"}, "48 bytes, not 96"),
        ({"key": text("1")}, "missing"),
        ({"key": text("../0")}, "missing"),
        ({"key": text("/etc/passwd")}, "missing"),
        ({"key": b"K\x00"}, "persistent id"),
        ({"kind": "Tensor"}, "torch.Tensor"),
        ({"offset": 1}, "beyond"),
        ({"offset": -1}, "out of range"),
        ({"offset": 2**40}, "out of range"),
        ({"shape": (4, 4)}, "beyond"),
        ({"shape": (-3, 4)}, "out of range"),
        ({"shape": (-3, -4)}, "out of range"),
        ({"shape": (2**62, 4)}, "out of range"),
        ({"shape": (2**31 - 1, 2**31 - 1), "strides": (0, 0)}, "elements"),
        ({"shape": (13,), "strides": (0,)}, "beyond"),
        ({"shape": (0, 2**62)}, "out of range"),
        ({"shape": ("3", 4)}, "out of range"),
        ({"shape": (3.0, 4)}, "out of range"),
        ({"shape": (True, 4)}, "out of range"),
        ({"shape": ((3,), 4)}, "out of range"),
        ({"strides": (-4, 1)}, "out of range"),
        ({"strides": (2**62, 1)}, "out of range"),
        ({"strides": (4, 5)}, "beyond"),
        ({"strides": (1,)}, "2 axes and 1 strides"),
        ({"shape": (1,) * 9, "strides": (1,) * 9}, "9 axes"),
    ],
)
def test_tensors_stay_within_their_storage(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in assert_refused(torch_zip(tmp_path, tensor(**options))).problem


@pytest.mark.parametrize(
    "program",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\nN\x85R.",
        b"ctorch._utils\n_rebuild_parameter\nN\x85R.",
        b"ctorch\nSize\nN\x85R.",
        b"ctorch\ndevice\nN\x85R.",
        b"ctorch\nFloatStorage\n)R.",
        b"ctorch\nfloat32\n)\x81.",
        b"ccollections\nOrderedDict\n](K\x00N\x86e\x85R.",
        b"NQ.",
        b"K\x07Q.",
        b")Q.",
        text("module") + b"ctorch\nFloatStorage\n\x86Q.",
        tensor()[:-1] + b")R.",
        tensor()[:-1] + b"}b.",
    ],
)
def test_torch_functions_take_only_what_they_must(program: bytes, tmp_path: Path) -> None:
    assert_refused(torch_zip(tmp_path, program))


@pytest.mark.parametrize(
    "name",
    [
        "torch.storage._load_from_bytes",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "torch._utils._rebuild_tensor_v3",
        "torch.load",
        "torch.jit.load",
        "torch.nn.modules.linear.Linear",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtype",
        "collections.OrderedDict.__init__.__globals__",
        "_codecs.encode",
        "builtins.getattr",
    ],
)
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    if "__" in name:
        module, attribute = name.split(".__")[0].rsplit(".", 1)
        attribute += name[name.index(".__") :]
    error = assert_refused(torch_zip(tmp_path, f"c{module}\n{attribute}\n.".encode()))
    assert name in error.problem


@pytest.mark.parametrize("name", [*running(Path()), *greedy(), *malformed()])
def test_hostile_pickles_are_refused_and_not_run(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = (running(marker) | greedy() | malformed())[name]
    assert_refused(torch_zip(tmp_path, program))
    assert not marker.exists()


def test_an_archive_within_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    inner = torch_zip(tmp_path / "inner", running(tmp_path / "marker")["reduce"]).read_bytes()
    count = len(inner)
    program = tensor(kind="ByteStorage", count=count, shape=(count,), strides=(1,))
    value = torch_file.read_torch(torch_zip(tmp_path, program, **{"data/0": inner}))
    assert np.array(value.read()).tobytes() == inner
    call = b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", count) + inner + b"\x85R."
    assert "_load_from_bytes" in assert_refused(torch_zip(tmp_path, call)).problem
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("field", "form", "value", "said"),
    [
        (CRC, "<I", 7, "CRC"),
        (METHOD, "<H", 8, "compressed"),
        (COMPRESSED, "<I", 40, "compressed"),
        (FLAGS, "<H", 1, "encrypted"),
        (FLAGS, "<H", 0x20, "patch"),
        (HEADER, "<I", 0, "overlaps another"),
        (HEADER, "<I", 1, "overlaps another"),
        (HEADER, "<I", 2**31, "header"),
        (HEADER, "<I", 2**32 - 1, "zip"),
    ],
)
def test_hostile_entries_are_refused(
    field: int, form: str, value: int, said: str, tmp_path: Path
) -> None:
    path = patched(torch_zip(tmp_path, tensor()), "some/data/0", field, form, value)
    assert said in assert_refused(path).problem


@pytest.mark.parametrize("name", ["data/0", "version"])
def test_entries_stay_within_the_file(name: str, tmp_path: Path) -> None:
    path = torch_zip(tmp_path, tensor())
    for size in (1000, 2**31):
        for field in (SIZE, COMPRESSED):
            patched(path, f"some/{name}", field, "<I", size)
        assert_refused(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("some/../../etc/passwd", "leads outside"),
        ("/etc/passwd", "leads outside"),
        ("some/./data", "leads outside"),
        ("some\\..\\data", "leads outside"),
        ("some//data", "leads outside"),
        ("some/../\x1b[2J", "leads outside"),
        ("some/../" + "a" * 9999, "leads outside"),
        ("other/data", "not written by torch.save"),
        ("somedata.pkl", "not written by torch.save"),
    ],
)
def test_names_that_lead_outside_the_archive_are_refused(
    name: str, said: str, tmp_path: Path
) -> None:
    path = torch_zip(tmp_path, b"N.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    assert said in assert_refused(path).problem


def test_duplicate_entries_are_refused(tmp_path: Path) -> None:
    path = torch_zip(tmp_path, b"N.")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("some/data.pkl", running(tmp_path / "marker")["reduce"])
    assert "appears twice" in assert_refused(path).problem
    patched(path, "some/data.pkl", 46 + 12, "<B", 0)  # which zip readers take for the end
    assert "two names" in assert_refused(path).problem


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(2**24))
    assert "compressed" in assert_refused(path).problem


def test_large_parts_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = torch_zip(tmp_path, tensor())
    monkeypatch.setattr(pickles, "MOST_BYTES", 20)
    assert "bytes" in assert_refused(path).problem
    monkeypatch.setattr(stored_zip, "MOST_AT_A_TIME", 100)
    assert "directory" in assert_refused(path).problem


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"byteorder": b"big"}, "little-endian"),
        ({"byteorder": b"little and more"}, "little-endian"),
        ({"version": b"11\n"}, "version"),
        ({"version": b"0"}, "version"),
        ({"version": b"-3"}, "version"),
        ({"version": b""}, "version"),
        ({"version": b"3" * 10}, "version"),
    ],
)
def test_other_formats_are_refused(entries: dict[str, bytes], said: str, tmp_path: Path) -> None:
    assert said in assert_refused(torch_zip(tmp_path, b"N.", **entries)).problem


@pytest.mark.parametrize("content", [b"", b"P", b"PK", b"PK\5\6" + bytes(18), b"\x93NUMPY", b"{}"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    assert "damaged" in assert_refused(path).problem


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "No such file" in assert_refused(tmp_path / "none.pt").problem
    assert "directory" in assert_refused(tmp_path).problem
    path = torch_zip(tmp_path, tensor())
    value = torch_file.read_torch(path)
    path.unlink()
    with pytest.raises(MlxchatError, match="cannot be read"):
        value.read()


STATE_DICT = (DATA / "state_dict.pt").read_bytes()
EXPECTED = listed(torch_file.read_torch(DATA / "state_dict.pt"))


@pytest.mark.slow
def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    for end in range(len(STATE_DICT)):
        path.write_bytes(STATE_DICT[:end])
        assert_refused(path)


@given(
    st.lists(
        st.tuples(st.integers(0, len(STATE_DICT) - 1), st.integers(1, 255)), min_size=1, max_size=3
    )
)
def test_changed_files_are_refused_or_right(changes: list[tuple[int, int]]) -> None:
    content = bytearray(STATE_DICT)
    for place, change in changes:
        content[place] ^= change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.pt"
        path.write_bytes(content)
        try:
            assert listed(torch_file.read_torch(path)) == EXPECTED
        except MlxchatError as error:
            assert error.problem.isprintable() and error.remedy
