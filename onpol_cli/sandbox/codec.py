"""Plain data to bytes and back, for the channel between judge and program.

Owns the encoding. It is JSON, with `{"": [tag, payload]}` for what JSON lacks, so that the C
encoder carries the bulk and decoding can build nothing but plain data. Whatever an object claims
about itself (`__eq__`, subclasses of int or str), only its plain value crosses: the judge compares
what it decoded itself. What has no plain value becomes `Opaque`, which equals nothing.

Runs inside the isolated processes, so it imports only the standard library.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

SCALARS = frozenset({type(None), bool, int, float, str})
NODE_CLASSES = frozenset({"ListNode", "TreeNode", "Node"})
"""Class names of linked nodes (LeetCode); instances cross as graphs."""
MAX_ITEMS = 1_000_000
"""Items taken from an iterator that a program returns."""
_HUGE_BITS = 8192
_EMPTY: dict[str, Any] = {}
_PLAIN: tuple[tuple[type, Any], ...] = ((int, int.__int__), (float, float.__float__), (str, str.__str__))
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))


class Opaque:
    """Stands for a value that is no plain data. Equal to nothing, itself included."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"<{self.name}: no plain data>"


class Malformed(ValueError):
    """Bytes that are no encoding of plain data."""


class _Encoder:
    """One value's encoding; holds the table of linked nodes met so far."""

    def __init__(self, huge: bool) -> None:
        self.huge = huge
        self.index: dict[int, int] = {}
        self.nodes: list[Any] = []

    def top(self, value: Any) -> Any:
        root = self.value(value)
        if not self.nodes:
            return root
        table, done = [], 0
        while done < len(self.nodes):
            node = self.nodes[done]
            table.append([type(node).__name__, {k: self.value(v) for k, v in _attributes(node).items()}])
            done += 1
        return {"": ["graph", [root, table]]}

    def value(self, x: Any) -> Any:
        kind = type(x)
        if kind in SCALARS:
            return {"": ["int", hex(x)]} if self.huge and kind is int and x.bit_length() > _HUGE_BITS else x
        if kind is list:
            return self.sequence(x)
        if kind is tuple:
            return {"": ["tuple", self.sequence(list(x))]}
        if isinstance(x, dict):
            return self.mapping(x)
        return self.other(x)

    def sequence(self, items: list[Any]) -> list[Any]:
        if not self.huge and set(map(type, items)) <= SCALARS:
            return items
        return [self.value(item) for item in items]

    def mapping(self, x: Mapping[Any, Any]) -> Any:
        if set(map(type, x)) <= {str} and "" not in x:
            return {k: self.value(v) for k, v in x.items()}
        return {"": ["dict", [[self.value(k), self.value(v)] for k, v in x.items()]]}

    def other(self, x: Any) -> Any:
        if isinstance(x, (set, frozenset, deque)):
            kind = "set" if isinstance(x, set) else "frozenset" if isinstance(x, frozenset) else "deque"
            return {"": [kind, self.sequence(list(x))]}
        if isinstance(x, (int, float, str)):  # subclasses: their plain value only
            return self.value(next(plain(x) for base, plain in _PLAIN if isinstance(x, base)))
        if isinstance(x, list):
            return self.sequence(list(x))
        if isinstance(x, tuple):
            return {"": ["tuple", self.sequence(list(x))]}
        return self.rare(x)

    def rare(self, x: Any) -> Any:
        if isinstance(x, (bytes, bytearray)):
            return {"": ["bytearray" if isinstance(x, bytearray) else "bytes", bytes(x).hex()]}
        if isinstance(x, complex):
            return {"": ["complex", [x.real, x.imag]]}
        if isinstance(x, range):
            return {"": ["range", [x.start, x.stop, x.step]]}
        if isinstance(x, (Decimal, Fraction)):
            return {"": [type(x).__name__, str(x)]}
        if type(x).__name__ in NODE_CLASSES:
            return self.node(x)
        if type(x).__module__ == "numpy" and hasattr(x, "item") and getattr(x, "shape", None) == ():
            return self.value(x.item())
        if isinstance(x, _VIEWS) or (hasattr(x, "__next__") and hasattr(x, "__iter__")):
            tag = "keys" if isinstance(x, _VIEWS[0]) else "iterator"
            return {"": [tag, self.sequence(list(itertools.islice(x, MAX_ITEMS)))]}
        return {"": ["opaque", type(x).__name__]}

    def node(self, x: Any) -> Any:
        if id(x) not in self.index:
            self.index[id(x)] = len(self.nodes)
            self.nodes.append(x)
        return {"": ["ref", self.index[id(x)]]}


def _attributes(node: Any) -> dict[str, Any]:
    slots = getattr(type(node), "__slots__", ())
    found = {name: getattr(node, name) for name in slots if hasattr(node, name)}
    return {**found, **getattr(node, "__dict__", {})}


def dumps(value: Any) -> bytes:
    """Encode `value`.

    Raises:
        Malformed: nested too deeply to be encoded.
    """
    try:
        try:
            return json.dumps(_Encoder(huge=False).top(value)).encode("ascii")
        except ValueError:  # an int beyond Python's limit of decimal digits, or a cycle
            return json.dumps(_Encoder(huge=True).top(value)).encode("ascii")
    except (RecursionError, ValueError) as error:
        raise Malformed(f"value nested too deeply or circular ({type(error).__name__})") from None


class _Decoder:
    def __init__(self, classes: Mapping[str, Any]) -> None:
        self.classes = classes
        self.nodes: list[Any] = []

    def value(self, x: Any) -> Any:
        if type(x) is list:
            return x if set(map(type, x)) <= SCALARS else [self.value(item) for item in x]
        if type(x) is not dict:
            return x
        if "" not in x:
            return {k: self.value(v) for k, v in x.items()}
        tag, payload = x[""]
        return self.tagged(tag, payload)

    def tagged(self, tag: str, payload: Any) -> Any:
        if tag == "graph":
            return self.graph(*payload)
        if tag == "ref":
            return self.nodes[payload]
        if tag == "opaque":
            return Opaque(str(payload))
        if tag in ("int", "bytes", "bytearray", "complex", "range", "Decimal", "Fraction"):
            return _ATOMS[tag](payload)
        if tag == "dict":
            return {self.value(k): self.value(v) for k, v in payload}
        if type(payload) is not list:  # a range in its place could be endless
            raise Malformed(f"{tag} without a list")
        return _CONTAINERS[tag](self.value(payload))

    def graph(self, root: Any, table: list[Any]) -> Any:
        self.nodes = [_blank(self.classes.get(name), name) for name, _ in table]
        for node, (_, attributes) in zip(self.nodes, table, strict=True):
            for name, value in attributes.items():
                if not isinstance(node, Opaque):
                    setattr(node, name, self.value(value))
        return self.value(root)


def _fraction(text: str) -> Fraction:
    numerator, _, denominator = text.partition("/")  # Fraction("1e9999999999") would never end
    return Fraction(int(numerator), int(denominator or 1))


def _blank(cls: Any, name: str) -> Any:
    return object.__new__(cls) if isinstance(cls, type) and name in NODE_CLASSES else Opaque(name)


_ATOMS: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda pair: complex(*pair),
    "range": lambda triple: range(*triple),
    "Decimal": Decimal,
    "Fraction": _fraction,
}
_CONTAINERS: dict[str, Any] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "iterator": iter,
    "keys": lambda items: dict.fromkeys(items).keys(),
}


def loads(data: bytes, classes: Mapping[str, Any] | None = None) -> Any:
    """Decode bytes from anywhere into plain data.

    Args:
        data: an encoding, or anything else.
        classes: node classes by name (a namespace); nodes of other classes become `Opaque`.

    Raises:
        Malformed: `data` is no encoding.
    """
    try:
        return _Decoder(classes or {}).value(json.loads(data))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, ArithmeticError) as error:
        raise Malformed(f"not plain data ({type(error).__name__})") from None


def has_opaque(value: Any) -> str | None:
    """Class name of the first `Opaque` inside `value`, or None."""
    stack: list[Any] = [value]
    while stack:
        x = stack.pop()
        if isinstance(x, Opaque):
            return x.name
        if isinstance(x, dict):
            stack.extend(itertools.chain(x.keys(), x.values()))
        elif isinstance(x, (list, tuple, set, frozenset, deque)):
            stack.extend(_non_scalars(x))
    return None


def _non_scalars(items: Iterable[Any]) -> list[Any]:
    return [item for item in items if type(item) not in SCALARS]
