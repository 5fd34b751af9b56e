"""The corruption families by name, and the functions that make mutants with them.

Owns the choice of families (`in-domain`, `out-of-domain`, `all`, or names) and the public entry
points `sites`, `corrupt` and `all_corruptions`; the families themselves are in `in_domain` and
`out_of_domain`, the machinery in `engine`. Source of the lists: the write-ups on Minimal Code Edit
(github.com/nreHieW/over-editing); how a family acts in detail is this project's own.
"""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterator, Sequence

from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.minimal_edit import engine
from onpol_cli.tasks.minimal_edit.engine import Corruption, Family, Site
from onpol_cli.tasks.minimal_edit.in_domain import IN_DOMAIN
from onpol_cli.tasks.minimal_edit.out_of_domain import OUT_OF_DOMAIN

__all__ = [
    "FAMILIES",
    "IN_DOMAIN",
    "OUT_OF_DOMAIN",
    "Corruption",
    "Family",
    "Site",
    "all_corruptions",
    "corrupt",
    "domain",
    "select_families",
    "sites",
]

FAMILIES: dict[str, Family] = {**IN_DOMAIN, **OUT_OF_DOMAIN}
"""Every family by name, the in-domain ones first."""

_SETS = {"in-domain": tuple(IN_DOMAIN), "out-of-domain": tuple(OUT_OF_DOMAIN), "all": tuple(FAMILIES)}


def select_families(spec: str) -> tuple[str, ...]:
    """Family names meant by `spec`: a set (`in-domain`, `out-of-domain`, `all`), names, or a mixture.

    Parts are separated by commas; `-` and `_` are the same. The order is that of `spec`, without
    repetitions.

    Raises:
        OnpolError: an unknown or empty name; the message lists the nearest ones.
    """
    chosen: dict[str, None] = {}
    for part in spec.split(","):
        word = part.strip()
        dashed = word.replace("_", "-")
        name = word.replace("-", "_").removeprefix("mutate_")
        if dashed in _SETS:
            chosen.update(dict.fromkeys(_SETS[dashed]))
        elif name in FAMILIES:
            chosen[name] = None
        else:
            near = difflib.get_close_matches(name, FAMILIES, n=3, cutoff=0.4) or ["comparison_operators"]
            raise OnpolError(
                f"Unknown corruption family {word!r} in {spec!r}. Nearest: {', '.join(near)}. "
                "Allowed: in-domain, out-of-domain, all, or family names separated by commas."
            )
    return tuple(chosen)


def domain(name: str) -> str:
    """`in-domain` or `out-of-domain`."""
    return "in-domain" if name in IN_DOMAIN else "out-of-domain"


def _families(names: Sequence[str]) -> tuple[Family, ...]:
    return tuple(FAMILIES[name] for name in names)


def sites(tree: ast.Module, family: str) -> list[Site]:
    """All places in function bodies where `family` could strike, in source order.

    Signatures, decorators, docstrings and annotations are never among them.
    """
    return engine.find_sites(tree, (FAMILIES[family],))


def corrupt(source: str, families: Sequence[str], rng: random.Random, count: int = 1) -> Corruption | None:
    """A mutant of `source` with up to `count` edits from `families` (names), drawn with `rng`.

    A family is drawn uniformly among those that apply, then one of its sites; two edits never
    touch the same piece of code. The same source, families and state of `rng` give the same
    mutant. None where the source does not parse or no family applies. That the mutant fails its
    tests is for the caller to check.
    """
    return engine.draw(source, _families(families), rng, count)


def all_corruptions(source: str, families: Sequence[str]) -> Iterator[Corruption]:
    """Every mutant of `source` with one edit, by family in the given order, then in source order.

    Raises:
        SyntaxError: the source does not parse.
    """
    return engine.every(source, _families(families))
