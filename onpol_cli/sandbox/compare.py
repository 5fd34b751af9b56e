"""When a result counts as right. Pure functions on plain data, looked up by name.

Owns the comparison rules. Runs inside the judge's process, so it imports only the standard library.
The `lcb` rules restate LiveCodeBench's `lcb_runner/evaluation/testing_util.py` (commit 28fef95).
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any


def equal(result: Any, expected: Any) -> bool:
    """Python's `==` on plain data, with nan equal to nan at the top level."""
    both_nan = isinstance(result, float) and isinstance(expected, float) and result != result and expected != expected
    return both_nan or bool(result == expected)


def lcb_call(result: Any, expected: Any) -> bool:
    """LiveCodeBench's functional rule: an outermost tuple counts as a list, then `==`."""
    return bool((list(result) if isinstance(result, tuple) else result) == expected)


def _decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(token) for token in line.split()]
    except (InvalidOperation, ValueError):
        return None


def _same_line(got: str, want: str) -> bool:
    if got == want:
        return True
    got_numbers, want_numbers = _decimals(got), _decimals(want)
    try:
        return got_numbers is not None and want_numbers is not None and got_numbers == want_numbers
    except InvalidOperation:  # a signalling nan
        return False


def lcb_stdout(got: str, want: str) -> bool:
    """LiveCodeBench's stdout rule.

    Both texts are stripped and split at newlines; the line counts must agree; each stripped line
    must be equal, or else be equal as a list of decimals.
    """
    got_lines, want_lines = got.strip().split("\n"), want.strip().split("\n")
    if len(got_lines) != len(want_lines):
        return False
    return all(_same_line(a.strip(), b.strip()) for a, b in zip(got_lines, want_lines, strict=True))


def exact(got: str, want: str) -> bool:
    """Equal texts, up to white space at the very end."""
    return got.rstrip() == want.rstrip()


CALL_RULES: dict[str, Callable[[Any, Any], bool]] = {"equal": equal, "lcb": lcb_call}
STDOUT_RULES: dict[str, Callable[[str, str], bool]] = {"lcb": lcb_stdout, "exact": exact}
