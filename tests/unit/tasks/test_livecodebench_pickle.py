"""The plain unpickler: reads plain data of every protocol, refuses everything else without running it."""

import base64
import contextlib
import pickle
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onpol_cli.tasks.livecodebench.plain_pickle import PoisonedData, inflate, read_plain_pickle, unbase64

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=40, deadline=None)
def test_plain_data_of_every_protocol(value, protocol):
    assert read_plain_pickle(pickle.dumps(value, protocol)) == value


class Evil:
    """Touches a file when unpickled by `pickle`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_not_run(tmp_path, protocol):
    target = tmp_path / "proof"
    data = pickle.dumps([1, Evil(target)], protocol)
    with pytest.raises(PoisonedData, match="not plain data"):
        read_plain_pickle(data)
    assert not target.exists()
    pickle.loads(data)
    assert target.exists(), "the sample is poisonous"


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'id'\ntR.",  # GLOBAL and REDUCE by hand
        b"(ios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # extension registry
        b"P1\n.",  # persistent id
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BYTEARRAY8 claiming 8 EiB
        b"\x80\x02]}b.",  # BUILD
        b"]2.",  # duplicates the stack's top, then leaves two values
    ],
)
def test_handmade_poison_is_refused(data):
    with pytest.raises(PoisonedData):
        read_plain_pickle(data)


def test_huge_memo_index_costs_nothing():
    assert read_plain_pickle(b"]r\xff\xff\xff\x7f.") == []


@pytest.mark.parametrize("data", [b"", b".", b"abc", b"\x80\x04", b"(", b"h\x01.", b"]a.", b"(K\x01d.", b"I9x\n."])
def test_damaged_pickles_are_refused(data):
    with pytest.raises(PoisonedData):
        read_plain_pickle(data)


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_no_bytes_raise_anything_else(data):
    with contextlib.suppress(PoisonedData):
        read_plain_pickle(data)


def test_zip_bomb_is_stopped_at_the_limit():
    bomb = zlib.compress(b"\0" * 10_000_000)
    with pytest.raises(PoisonedData, match="more than 1,000"):
        inflate(bomb, limit=1000)
    assert len(inflate(bomb)) == 10_000_000


def test_damaged_streams_are_refused():
    data = zlib.compress(b"hello" * 100)
    for bad in (data[:-6], b"xx" + data, b""):
        with pytest.raises(PoisonedData):
            inflate(bad)


def test_text_that_is_not_base64_is_refused():
    assert unbase64(base64.b64encode(b"x").decode()) == b"x"
    for bad in ("%%%", "é"):
        with pytest.raises(PoisonedData, match="neither JSON nor base64"):
            unbase64(bad)
