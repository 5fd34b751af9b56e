"""Decoding of LiveCodeBench's private tests: base64(zlib(pickle(JSON text))), from strangers.

Owns a pickle reader that can build nothing but plain data (strings, numbers, booleans, None, lists,
tuples, dicts) and a decompression with a ceiling. Does not use `pickle`: even with `find_class`
forbidden, the C reader allocates what a file claims (memo index 2**31, BYTEARRAY8 of 8 EiB). Here
each opcode that is not on the list below ends the reading, so a poisoned file runs nothing and
allocates no more than its own size. Knows nothing of problems or of files (`data`).
"""

from __future__ import annotations

import base64
import binascii
import pickletools
import zlib
from collections.abc import Callable
from typing import Any

MAX_DECODED = 512 * 1024 * 1024
"""Largest accepted size of one problem's decompressed tests, bytes (the real ones stay below 100 MB)."""


class PoisonedData(ValueError):
    """The bytes are not plain data; the message says what was found."""


class _Machine:
    """Stack and memo of one reading."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PoisonedData(f"a pickle that appends to {type(target).__name__}")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise PoisonedData(f"a pickle that sets items of {type(target).__name__}")
        target.update(_pairs(items))

    def take(self, count: int) -> list[Any]:
        items = [self.stack.pop() for _ in range(count)]
        return items[::-1]


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


_Step = Callable[[_Machine, Any], None]


def _push(m: _Machine, arg: Any) -> None:
    m.stack.append(arg)


def _constant(make: Callable[[], Any]) -> _Step:
    return lambda m, _: m.stack.append(make())


def _store(m: _Machine, arg: Any) -> None:
    m.memo[len(m.memo) if arg is None else int(arg)] = m.stack[-1]


def _mark(m: _Machine, _: Any) -> None:
    m.marks.append(len(m.stack))


def _pop(m: _Machine, _: Any) -> None:
    m.stack.pop()


_LITERALS = [
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
]

_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_LITERALS, _push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _store),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, arg: m.stack.append(m.memo[int(arg)])),
    "MARK": _mark,
    "POP": _pop,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _constant(tuple),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "DICT": lambda m, _: m.stack.append(_pairs(m.since_mark())),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.take(3))),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update(m.take(2)),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
}


def read_plain_pickle(data: bytes) -> Any:
    """The plain value pickled in `data`, any protocol.

    Raises:
        PoisonedData: an opcode that could build anything else, or bytes that are not a pickle.
    """
    machine = _Machine()
    try:
        for opcode, arg, _ in pickletools.genops(data):
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PoisonedData(f"a pickle with the instruction {opcode.name}, which is not plain data")
            step(machine, arg)
    except PoisonedData:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PoisonedData(f"a damaged pickle ({type(error).__name__}: {str(error)[:80]})") from error
    if len(machine.stack) != 1:
        raise PoisonedData(f"a pickle that leaves {len(machine.stack)} values instead of 1")
    return machine.stack[0]


def unbase64(text: str) -> bytes:
    """The bytes behind `text`.

    Raises:
        PoisonedData: not base64.
    """
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise PoisonedData(f"text that is neither JSON nor base64 ({error})") from error


def inflate(data: bytes, limit: int = MAX_DECODED) -> bytes:
    """zlib decompression that stops at `limit` bytes.

    Raises:
        PoisonedData: damaged or truncated stream, or more than `limit` bytes (a zip bomb).
    """
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise PoisonedData(f"a damaged zlib stream ({error})") from error
    if len(plain) > limit:
        raise PoisonedData(f"a zlib stream that unpacks to more than {limit:,} bytes")
    if not stream.eof:
        raise PoisonedData("a truncated zlib stream")
    return plain
