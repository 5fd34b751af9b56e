"""Surface style: the decisions about how a program is written that do not change what it does."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """One way of writing; every field is drawn independently of the program.

    Attributes:
        comprehension: gather by a comprehension where the meaning allows it, else by a loop.
        stored: keep the comprehension's list in a variable before it is used.
        form: in [0, 1): which form of the source.
        augmented: `t += e` rather than `t = t + e`.
        skip: `if not c: continue` rather than nesting.
        bind: give the element of an index loop a name.
        named: keep the expression in a variable before it is used.
        result: keep the result in a variable before the final step.
        other: use the equivalent spelling of terms.
        idiom: use the second idiom of a gather step (flag variable, default=, ...).
        guard: in [0, 1): which spelling of the early return.
        branch: in [0, 1): which layout of a piecewise function.
        element, index, total, listed, spare: in [0, 1): which names.
    """

    comprehension: bool
    stored: bool
    form: float
    augmented: bool
    skip: bool
    bind: bool
    named: bool
    result: bool
    other: bool
    idiom: bool
    guard: float
    branch: float
    element: float
    index: float
    total: float
    listed: float
    spare: float


def draw_style(rng: random.Random) -> Style:
    """A random style."""
    u = rng.random
    return Style(
        comprehension=u() < 0.42,
        stored=u() < 0.4,
        form=u(),
        augmented=u() < 0.65,
        skip=u() < 0.35,
        bind=u() < 0.4,
        named=u() < 0.35,
        result=u() < 0.4,
        other=u() < 0.4,
        idiom=u() < 0.5,
        guard=u(),
        branch=u(),
        element=u(),
        index=u(),
        total=u(),
        listed=u(),
        spare=u(),
    )


ELEMENT_NAMES: dict[str, tuple[str, ...]] = {
    "x": ("x", "v", "num"),
    "a": ("a", "p", "left"),
    "b": ("b", "q", "right"),
    "w": ("w", "word"),
    "c": ("c", "ch"),
    "k": ("k", "key"),
    "v": ("v", "val"),
    "r": ("r", "row"),
}
INDEX_NAMES = ("i", "j")
TOTAL_NAMES = ("total", "res", "acc")
LIST_NAMES = ("out", "res", "items")
SPARE_NAMES = ("y", "z", "e")


def pick(options: tuple[str, ...], u: float) -> str:
    """The option at `u` in [0, 1)."""
    return options[int(u * len(options))]


def choose_names(style: Style) -> dict[str, str]:
    """Variable names by role, without a clash among themselves or with a parameter."""
    names = {role: pick(options, style.element) for role, options in ELEMENT_NAMES.items()}
    names["i"] = pick(INDEX_NAMES, style.index)
    names["total"] = pick(TOTAL_NAMES, style.total)
    names["list"] = pick(LIST_NAMES, style.listed)
    names["y"] = pick(SPARE_NAMES, style.spare)
    names["t"] = "tmp"
    names["n"] = "n"
    return names
