"""Pickles that would do harm: each makes a folder when it is run, or takes all memory or time."""

import pickle
import struct
from pathlib import Path

EXTENSION = 240  # to be registered for os.mkdir


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def running(marker: Path) -> dict[str, bytes]:
    """Pickles of which ``pickle.loads`` really makes the folder ``marker``."""
    path = str(marker)
    argument = pickle.MARK + text(path) + pickle.TUPLE
    shell = pickle.MARK + text(f"mkdir {path}") + pickle.TUPLE
    source = pickle.MARK + text(f"__import__('os').mkdir({path!r})") + pickle.TUPLE
    mkdir = b"cos\nmkdir\n"
    call = pickle.REDUCE
    named = text("os") + text("mkdir") + pickle.STACK_GLOBAL
    joined = b"coperator\nadd\n" + text("o") + text("s") + pickle.TUPLE2 + call
    chain = b"cbuiltins\ngetattr\n(cos\nmkdir\n" + text("__call__") + pickle.TUPLE + call
    dotted = pickle.PROTO + b"\x04" + text("shutil") + text("os.mkdir") + pickle.STACK_GLOBAL
    inner = mkdir + argument + call + pickle.STOP
    nested = pickle.BINBYTES + struct.pack("<I", len(inner)) + inner
    paths = pickle.EMPTY_LIST + text(path) + pickle.APPEND
    mapped, drained = b"cbuiltins\nmap\n" + mkdir + paths + pickle.TUPLE2, b"cbuiltins\ntuple\n"
    new, new_ex = pickle.NEWOBJ, pickle.EMPTY_DICT + pickle.NEWOBJ_EX
    programs = {
        "reduce": mkdir + argument + call,
        "os.system": b"cos\nsystem\n" + shell + call,
        "posix.system": b"cposix\nsystem\n" + shell + call,
        "builtins.eval": b"cbuiltins\neval\n" + source + call,
        "builtins.exec": b"cbuiltins\nexec\n" + source + call,
        "getattr chain": chain + argument + call,
        "stack_global": named + argument + call,
        "computed name": joined + text("mkdir") + pickle.STACK_GLOBAL + argument + call,
        "dotted name": dotted + argument + call,
        "inst": pickle.MARK + text(path) + b"ios\nmkdir\n",
        "obj": pickle.MARK + mkdir + text(path) + pickle.OBJ,
        "newobj": drained + mapped + new + pickle.TUPLE1 + new,
        "newobj_ex": drained + mapped + new_ex + pickle.TUPLE1 + new_ex,
        "ext1": pickle.EXT1 + bytes([EXTENSION]) + argument + call,
        "ext2": pickle.EXT2 + struct.pack("<H", EXTENSION) + argument + call,
        "ext4": pickle.EXT4 + struct.pack("<I", EXTENSION) + argument + call,
        "nested pickle": b"c_pickle\nloads\n" + nested + pickle.TUPLE1 + call,
        "before the value": mkdir + argument + call + pickle.POP + pickle.NONE,
        "as a key": pickle.EMPTY_DICT + mkdir + argument + call + pickle.NONE + pickle.SETITEM,
        "setstate": (
            b"cfunctools\npartial\n" + mkdir + pickle.TUPLE1 + call + pickle.MARK + mkdir
            + argument + pickle.EMPTY_DICT + pickle.NONE + pickle.TUPLE + pickle.BUILD
            + pickle.EMPTY_TUPLE + call
        ),
    }  # fmt: skip
    return {name: program + pickle.STOP for name, program in programs.items()}


def greedy() -> dict[str, bytes]:
    """Pickles that are large or endless when they are made or walked through."""
    laughs = pickle.EMPTY_LIST + pickle.BINPUT + b"\0"
    for index in range(100):
        pair = pickle.MARK + (pickle.BINGET + bytes([index])) * 10 + pickle.TUPLE
        laughs += pair + pickle.BINPUT + bytes([index + 1])
    wide = pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.MARK + b"K\1" * 5000 + pickle.APPENDS
    wide += pickle.MEMOIZE + pickle.EMPTY_LIST + pickle.MARK + b"h\1" * 5000 + pickle.APPENDS
    ring = pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.BINGET + b"\0" + pickle.APPEND
    programs = {
        "billion laughs": laughs,
        "shared lists": wide + pickle.TUPLE2,
        "ring": ring,
        "deep": pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000,
        "marks": pickle.MARK * 100_000,
        "long1": pickle.LONG1 + b"\xff" + bytes(255),
        "long4": pickle.LONG4 + struct.pack("<i", 2**31 - 1),
        "long text": pickle.BINUNICODE + struct.pack("<I", 2**32 - 1),
        "longer text": pickle.BINUNICODE8 + struct.pack("<Q", 2**63),
        "bytes": pickle.BINBYTES + struct.pack("<I", 2**32 - 1),
        "bytearray": pickle.BYTEARRAY8 + struct.pack("<Q", 2**62),
        "decimal": pickle.LONG + b"9" * 100_000 + b"L\n",
    }
    return {name: program + pickle.STOP for name, program in programs.items()}


def malformed() -> dict[str, bytes]:
    """Pickles that no writer makes."""
    ordered = b"ccollections\nOrderedDict\n"
    programs = {
        "empty": b"",
        "no value": pickle.STOP,
        "two values": b"NN.",
        "open mark": b"(N.",
        "no mark": b"t.",
        "goes on": b"N.N.",
        "unknown instruction": b"\xff.",
        "protocol 9": b"\x80\x09N.",
        "recall of nothing": b"h\x07.",
        "put of nothing": b"q\x00N.",
        "build of nothing": b"Nb.",
        "build of a dictionary": b"}}b.",
        "build of a list": b"]}b.",
        "append to a dictionary": b"}Na.",
        "item of a list": b"]K\x00Ns.",
        "item of a tuple": b")K\x00Ns.",
        "key without value": b"}(K\x00u.",
        "list as key": b"}]Ns.",
        "tuple as key": b"})Ns.",
        "float as key": b"}" + pickle.BINFLOAT + struct.pack(">d", 1) + b"Ns.",
        "call of None": b"N)R.",
        "call of a text": text("os.system") + b")R.",
        "arguments in a list": ordered + b"]R.",
        "name of a list": b"]]\x93.",
        "unterminated name": b"c" + b"a" * 10_000,
        "name with control characters": b"c\x1b[2J\r\nb\n.",
        "name that is not UTF-8": b"c\xff\nb\n.",
        "text that is not UTF-8": b"X\x01\x00\x00\x00\xff.",
        "persistent id in text": b"Pstorage\n.",
        "persistent id": text("storage") + b"Q.",
        "pop": b"NN0.",
        "duplicate": b"N2.",
        "set": b"\x8f.",
        "buffer": pickle.NEXT_BUFFER + b".",
    }  # fmt: skip
    return programs
