"""Fidelity metrics against hand-counted values and the published worked examples."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needed import missing

from onpol_cli.tasks.extraction import extract_code
from onpol_cli.tasks.minimal_edit.families import corrupt, select_families
from onpol_cli.tasks.minimal_edit.fidelity import (
    added_cc,
    cognitive_complexity,
    distance,
    excess_levenshtein,
    fidelity,
    normalise,
    normalised_distance,
    tokens,
)

DATA = Path(os.environ.get("ONPOL_DATA", Path(__file__).parents[5] / "shared" / "data"))
EXAMPLES = DATA / "minimal_edit" / "metric_examples.jsonl"


def test_published_examples_are_reproduced_exactly() -> None:
    if not EXAMPLES.exists():
        missing(f"{EXAMPLES} is missing; set ONPOL_DATA")
    rows = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    assert len(rows) == 60
    for row in rows:
        got = fidelity(row["original"], row["corrupted"], row["answer"])
        assert (got.excess_levenshtein, got.added_cc) == (row["excess_levenshtein"], row["added_cc"]), row["task_id"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", 0),
        ("if a and b or c:\n    pass", 1),  # the test is not looked at
        ("x = a and b and c or d", 3),
        ("if a:\n    x\nelif b:\n    y\nelse:\n    z", 2),
        ("if a:\n    x\nelse:\n    if b:\n        y", 2),  # the same tree as elif
        ("if a:\n    x\nelse:\n    z\n    if b:\n        y", 3),
        ("for i in [j for j in a]:\n    while b:\n        c", 3),  # iterables are not looked at
        ("async def f():\n    async for i in a:\n        async with b:\n            if c: pass", 4),
        ("x = a if b else c if d else e", 2),  # no nesting inside expressions
        ("x = [i for i in a if b if c for j in d]", 4),
        ("for k in z:\n    x = [i for i in a if b]", 5),
        ("try:\n    if a: pass\nexcept B:\n    if c: pass\nelse:\n    d\nfinally:\n    if e: pass", 7),
        ("try:\n    if a: pass\nexcept* B:\n    if c: pass", 2),
        ("with (a or b):\n    if c: pass", 2),
        ("def f():\n    def g():\n        if a: pass", 1),
        ("match a:\n    case 1:\n        if b: pass\n    case _ if c and d:\n        pass", 6),
        ("assert a or b\nreturn_ = lambda: x if y else z", 2),
    ],
)
def test_cognitive_complexity_by_hand(source: str, expected: int) -> None:
    assert cognitive_complexity(source) == expected


@pytest.mark.parametrize("source", ["def f(:", "x = '\0'", "(" * 5000, "a = '\ud800'", "return\n  x"])
def test_unreadable_sources(source: str) -> None:
    with pytest.raises(SyntaxError):
        cognitive_complexity(source)
    assert added_cc("x = 1", source) is None
    assert added_cc(source, "x = 1") is None
    assert normalise(source) == source
    assert distance(source, source) == 0


@pytest.mark.parametrize("source", ["x = " + "-" * 2000 + "1", "x = a" + ".b" * 4000, "x = " + "1 + " * 4000 + "1"])
def test_deep_nesting_is_survived(source: str) -> None:
    assert distance(source, "x = 1") > 0
    assert added_cc(source, source) in (0, None)
    function = "def f(a):\n    " + source
    assert corrupt(function, select_families("all"), random.Random(0)) is None


def test_tokens_drop_comments_layout_and_indents() -> None:
    source = "def f( a ):\n\n    # why\n    return (a)  # because\n"
    assert tokens(source) == ("def", "f", "(", "a", ")", ":", "\n", "return", "a", "")


def test_sources_that_do_not_tokenise_are_split_on_white_space() -> None:
    assert tokens("x = (1, # one\n 'a # b' \"") == ("x", "=", "(1,", "'a", "#", "b'", '"')
    assert tokens("(\n'''a # b''' # c\n'it\\'s # d' # e") == ("(", "'''a", "#", "b'''", "'it\\'s", "#", "d'")


def test_distance_counts_tokens() -> None:
    assert distance("x = a + b", "x = a - b") == 1
    assert distance("x = a + b", "x=a+b  # same") == 0
    assert normalised_distance("x = a + b", "x = a - b") == pytest.approx(1 / 6)
    assert normalised_distance("", "") == 0.0


def test_excess_compares_with_the_reversal() -> None:
    original, corrupted = "x = a + b", "x = a - b"
    assert excess_levenshtein(original, corrupted, original) == 0.0
    assert excess_levenshtein(original, corrupted, corrupted) == pytest.approx(-1 / 6)
    assert excess_levenshtein(original, corrupted, "x = (b + a) * 1") > 0


PROGRAM = '''
def f(a, b):
    """Doc."""
    total = 0
    for i in range(1, len(a)):
        if a[i] > a[i - 1] and b is not None:
            total += abs(a[i] - b)
        elif a[i] == 3:
            break
    return sorted(x for x in a if x)[-1] if total else [t.strip() for t in a]
'''

ALPHABET = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from(list("()[]{}:#'\"\\\n\t ` ~=if for\0\ud800"))), max_size=60
)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(ALPHABET, ALPHABET)
def test_invariants_on_any_text(a: str, b: str) -> None:
    _check(a, b)


def _check(a: str, b: str) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (tokens(a) == tokens(b))
    assert 0.0 <= normalised_distance(a, b) <= 1.0
    assert excess_levenshtein(a, b, a) == 0.0
    assert added_cc(a, a) in (0, None)
    code = extract_code(a)
    if code is not None:
        fidelity(a, b, code)


def _mutated(rng: random.Random) -> str:
    """A program with random bites, insertions and exchanged pieces, or plain noise."""
    names = select_families("all")
    mutant = corrupt(PROGRAM, names, rng, rng.randrange(1, 6))
    text = mutant.source if mutant and rng.random() < 0.7 else PROGRAM
    if rng.random() < 0.2:
        text = "".join(rng.choice("()[]{}:#'\"\\\n\t `~=x1fi\0\r\x0cé\ud800") for _ in range(rng.randrange(80)))
    for _ in range(rng.randrange(4)):
        at, length = rng.randrange(len(text) + 1), rng.randrange(12)
        filler = rng.choice(["", "```python\n", "```", "<think>", "'''", "(", "\n        ", "\0", "\\", "# x", "#"])
        text = text[:at] + filler + text[at + length :]
    return text


def _fuzz(first: int, last: int) -> None:
    for seed in range(first, last):
        rng = random.Random(seed)
        _check(_mutated(rng), _mutated(rng))


def test_mutated_programs_and_noise() -> None:
    _fuzz(0, 500)


@pytest.mark.full
def test_mutated_programs_and_noise_at_length() -> None:
    _fuzz(500, 10_000)
