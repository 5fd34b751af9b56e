"""The comparison rules, and the codec against bytes from anybody."""

from __future__ import annotations

import pytest

from onpol_cli.sandbox import codec
from onpol_cli.sandbox.compare import equal, lcb_call, lcb_stdout


@pytest.mark.parametrize(
    ("got", "want", "same"),
    [
        ("1 2\n3", " 1 2 \n3\n\n", True),
        ("1.0 2", "1 2.000", True),
        ("1.0000001", "1", False),
        ("50000000000000001", "50000000000000000", False),
        ("yes", "Yes", False),
        ("a  b", "a b", False),
        ("1  2", "1 2", True),
        ("1\n2", "1 2", False),
        ("", "", True),
        ("nan", "nan", True),
        ("x", "", False),
    ],
)
def test_stdout_rule(got: str, want: str, same: bool) -> None:
    assert lcb_stdout(got, want) is same


def test_call_rules() -> None:
    assert lcb_call((1, 2), [1, 2])
    assert not lcb_call([(1, 2)], [[1, 2]])
    assert equal(float("nan"), float("nan"))
    assert not equal([1], (1,))
    assert not equal(codec.Opaque("X"), codec.Opaque("X"))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"{", b"[" * 100_000, b'{"": 1}', b'{"": ["no such tag", 1]}', b'{"": ["ref", 5]}',
        b'{"": ["bytes", "zz"]}', b'{"": ["set", [[]]]}', b'{"": ["graph", 3]}', b'{"": ["Decimal", "x"]}',
        b'{"": [[], []]}', b"1" * 10_000,
    ],
)  # fmt: skip
def test_garbage_is_malformed(data: bytes) -> None:
    with pytest.raises(codec.Malformed):
        codec.loads(data)


def test_subclasses_cross_as_plain_values() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Text(str):
        def __str__(self) -> str:
            return "other"

    value = codec.loads(codec.dumps([Liar(3), Text("x"), {Text("k"): True}]))
    assert value == [3, "x", {"k": True}]
    assert [type(item) for item in value] == [int, str, dict]


def test_shared_and_circular_nodes_keep_their_shape() -> None:
    class Node:
        def __init__(self) -> None:
            self.neighbors: list[Node] = []

    a, b = Node(), Node()
    a.neighbors, b.neighbors = [a, b], [a]
    copy = codec.loads(codec.dumps(a), {"Node": Node})
    assert copy.neighbors[0] is copy
    assert copy.neighbors[1].neighbors == [copy]
    assert isinstance(codec.loads(codec.dumps(a)), codec.Opaque)
