"""A safe reader of pickles: nothing is imported, and only functions of the caller are called.

A pickle is a program for a stack machine. ``pickle.Unpickler`` with a ``find_class`` that admits
few names still executes all of that machine's instructions: it calls whatever is on the stack, sets
attributes and calls ``__setstate__`` (BUILD), and looks classes up in a registry of the process
(EXT). This module is a machine of its own for the few instructions that data needs: `_OPCODES` is
all that a pickle can do, and any other instruction is refused by name. A name is looked up in a
table and never imported; a call must be of a `Function` in that table; the state that a pickle
gives to an object is stored, not applied.

The size of the pickle, the number of its instructions and the size and depth of its value are
limited.
Instructions: ``pickletools.opcodes`` of Python's library.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxchat.checkpoint.files import damaged, refused

MOST_BYTES = 2**26
MOST_OPCODES = 2**22
MOST_VALUES = 2**20  # in the value made, a shared one counted wherever it is
DEEPEST = 32  # lists within lists
LONGEST_INTEGER = 8  # bytes; with more, there would be too many integers of one hash
LONGEST_NAME = 200
LATEST_PROTOCOL = 5


@dataclass(frozen=True)
class Function:
    """A function that a pickle may call.

    Args:
        call: takes the tuple of arguments; raises ValueError if they are wrong.
    """

    call: Callable[[tuple[Any, ...]], Any]


Admitted = Mapping[tuple[str, str], Any]  # by module and name: a `Function` or a value
Resolve = Callable[[Any], Any]


class Instance:
    """An object to which a pickle may give a state, once."""

    state: Any = None


class _RefusedError(ValueError):
    """The pickle asks for more than data."""


def read_pickle(
    data: bytes, path: Path, admitted: Admitted, persistent: Resolve | None = None
) -> Any:
    """Read a pickle.

    Args:
        data: the pickle.
        path: the file it is from, for error messages.
        admitted: the values and functions that it may name.
        persistent: returns the value of a persistent id, or raises ValueError; None if the file
            may have no such ids.

    Returns:
        None, numbers, text, bytes, tuples, lists, dictionaries and the results of the admitted
        functions.

    Raises:
        CheckpointError: the pickle asks for anything else (which is named), is damaged, or is too
            large.
    """
    if len(data) > MOST_BYTES:
        raise damaged(path, f"a pickle of more than {MOST_BYTES:,} bytes")
    try:
        value = _Machine(data, admitted, persistent).run()
        _check_extent(value)
    except _RefusedError as error:
        raise refused(path, str(error)) from error
    except ValueError as error:
        raise damaged(path, error) from error
    return value


class _Machine:
    """The state that instructions change. A stack lies aside for each open MARK."""

    def __init__(self, data: bytes, admitted: Admitted, persistent: Resolve | None) -> None:
        self.data, self.admitted, self.persistent = data, admitted, persistent
        self.position = 0
        self.stack: list[Any] = []
        self.aside: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute the instructions up to STOP."""
        for _ in range(MOST_OPCODES):
            code = self.take(1)
            if code == pickle.STOP:
                return self.result()
            step = _OPCODES.get(code)
            if step is None:
                raise _unknown(code)
            step(self)
        raise ValueError(f"a pickle of more than {MOST_OPCODES:,} instructions")

    def result(self) -> Any:
        if self.position != len(self.data):
            raise ValueError("the pickle continues after its end")
        if self.aside or len(self.stack) != 1:
            raise ValueError("the pickle leaves more or less than one value")
        return self.stack[0]

    def take(self, size: int) -> bytes:
        taken = self.data[self.position : self.position + size]
        if len(taken) != size:
            raise ValueError("the pickle ends too early")
        self.position += size
        return taken

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def integer(self) -> int:
        size = self.number(_U8)
        if size > LONGEST_INTEGER:
            raise ValueError(f"an integer of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def block(self, length: struct.Struct) -> bytes:
        return self.take(self.number(length))

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + LONGEST_NAME)
        if end < 0:
            raise ValueError("an unterminated name")
        return self.take(end + 1 - self.position)[:-1].decode("utf-8")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the pickle uses values that it does not have")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def top(self) -> Any:
        (value,) = self.pop(1)
        self.push(value)
        return value

    def mark(self) -> None:
        self.aside.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Return all values of this stack, and return to the one before."""
        if not self.aside:
            raise ValueError("the pickle uses values that it does not have")
        values, self.stack = self.stack, self.aside.pop()
        return values

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise _RefusedError(f"it appends to {_type_of(target)}")
        target += items

    def update(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict):
            raise _RefusedError(f"it sets an item of {_type_of(target)}")
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise _RefusedError(f"it has {_type_of(key)} as a key")
            target[key] = value

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError("the pickle recalls a value that it does not have")
        self.push(self.memo[index])

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _RefusedError("it computes the name of something to call")
        if (module, name) not in self.admitted:
            raise _RefusedError(f"it asks for {module}.{name}")
        self.push(self.admitted[module, name])

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Function):
            raise _RefusedError(f"it calls {_type_of(function)}")
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are not a tuple")
        self.push(function.call(arguments))

    def build(self) -> None:
        (state,) = self.pop(1)
        target = self.top()
        if not isinstance(target, Instance) or target.state is not None:
            raise _RefusedError(f"it sets the state of {_type_of(target)}")
        target.state = state

    def refer(self) -> None:
        (identity,) = self.pop(1)
        if self.persistent is None:
            raise _RefusedError("it has a persistent id")
        self.push(self.persistent(identity))

    def protocol(self) -> None:
        if (version := self.number(_U8)) > LATEST_PROTOCOL:
            raise ValueError(f"a pickle of protocol {version}")


_U8, _U16, _U32, _U64 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q"))
_I32, _F64 = struct.Struct("<i"), struct.Struct(">d")

_CONTAINERS = (dict, list, tuple, Instance)
_OPCODES: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.protocol,
    pickle.FRAME: lambda m: m.number(_U64),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT1: lambda m: m.push(m.number(_U8)),
    pickle.BININT2: lambda m: m.push(m.number(_U16)),
    pickle.BININT: lambda m: m.push(m.number(_I32)),
    pickle.LONG1: lambda m: m.push(m.integer()),
    pickle.BINFLOAT: lambda m: m.push(m.number(_F64)),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.block(_U8).decode("utf-8")),
    pickle.BINUNICODE: lambda m: m.push(m.block(_U32).decode("utf-8")),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.block(_U8)),
    pickle.BINBYTES: lambda m: m.push(m.block(_U32)),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.MARK: _Machine.mark,
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.TUPLE1: lambda m: m.push(tuple(m.pop(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.pop(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.pop(3))),
    pickle.APPEND: lambda m: m.extend(m.pop(1)),
    pickle.APPENDS: lambda m: m.extend(m.since_mark()),
    pickle.SETITEM: lambda m: m.update(m.pop(2)),
    pickle.SETITEMS: lambda m: m.update(m.since_mark()),
    pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
    pickle.BINPUT: lambda m: m.put(m.number(_U8)),
    pickle.LONG_BINPUT: lambda m: m.put(m.number(_U32)),
    pickle.BINGET: lambda m: m.recall(m.number(_U8)),
    pickle.LONG_BINGET: lambda m: m.recall(m.number(_U32)),
    pickle.GLOBAL: lambda m: m.named(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.named(*m.pop(2)),
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.refer,
}


def _check_extent(value: Any) -> None:
    """Check that a walk through the value ends, even if parts are shared or it contains itself.

    Raises:
        ValueError: it is too large or too deep.
    """
    count, pending = 0, [(value, 1)]
    while pending:
        container, depth = pending.pop()
        inner = _inner(container)
        count += len(inner)
        if count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        if depth > DEEPEST:
            raise ValueError(f"values more than {DEEPEST} deep")
        pending += [(item, depth + 1) for item in inner if isinstance(item, _CONTAINERS)]


def _inner(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value
    state = [value.state] if isinstance(value, Instance) else []
    return [*items, *state] if isinstance(value, dict | list | tuple) else state


def _unknown(code: bytes) -> ValueError:
    names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    if name := names.get(code.decode("latin-1")):
        return _RefusedError(f"it has the instruction {name}")
    return ValueError(f"no instruction is 0x{code.hex()}")


def _type_of(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
