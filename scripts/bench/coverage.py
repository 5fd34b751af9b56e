"""How often the intervals of `onpol compare` contain the truth, and how often its tests err, by simulation.

    python scripts/bench/coverage.py [--repeats 1000] [--out results/bench/coverage.json] [KIND ...]

The cells and the seed are those of `tests/unit/comparison/test_coverage.py` (its large run). Minutes a kind on one
core; `--out` is written after each and keeps kinds of the same repeats that were simulated earlier. Ends with one
JSON object: mean, lowest and highest share of each kind; its ratios are mean shares over nominal ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from facts import tell

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit" / "comparison")]

from simulate import KINDS, RATES, SIZES, Setting, simulate  # noqa: E402


def summary(shares: list[float]) -> dict[str, Any]:
    """Mean, extremes, and every cell."""
    return {"mean": round(float(np.mean(shares)), 4), "min": min(shares), "max": max(shares), "cells": shares}


def main() -> None:
    """Simulate every kind, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"default all: {', '.join(KINDS)}")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"unknown kinds {sorted(unknown)}")
    kinds: dict[str, Any] = known(options.out, options.repeats)
    for name in options.kinds or KINDS:
        start, kind = time.process_time(), KINDS[name]
        cells = [simulate(Setting(n, p, **kind), options.repeats) for n in SIZES for p in RATES]
        kinds[name] = {part: summary([getattr(cell, part) for cell in cells]) for part in PARTS}
        kinds[name]["cpu_s"] = round(time.process_time() - start)
        sys.stderr.write(f"{name}: {json.dumps(short(kinds[name]))}\n")
        if options.out is not None:
            whole = {"repeats": options.repeats, "n": SIZES, "p": RATES, "kinds": kinds}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    brief = {name: short(kind) for name, kind in kinds.items()}
    ratios = {name: over_nominal(kind) for name, kind in kinds.items()}
    tell({"bench": "coverage", "repeats": options.repeats, "mean, min, max": brief, "ratios": ratios}, None)


def known(out: Path | None, repeats: int) -> dict[str, Any]:
    """Kinds that the file holds already, at the same repeats."""
    if out is None or not out.is_file():
        return {}
    before: dict[str, Any] = json.loads(out.read_text("utf-8"))
    found: dict[str, Any] = before["kinds"] if before["repeats"] == repeats else {}
    return found


def short(kind: dict[str, Any]) -> dict[str, Any]:
    """Mean, lowest and highest of each part."""
    return {part: [kind[part][key] for key in ("mean", "min", "max")] for part in PARTS}


def over_nominal(kind: dict[str, Any]) -> dict[str, float]:
    """Mean share of each part over what it ought to be."""
    return {part: round(kind[part]["mean"] / NOMINAL[part], 4) for part in PARTS}


PARTS = ("score", "difference", "false_positives")
NOMINAL = {"score": 0.95, "difference": 0.95, "false_positives": 0.05}
"""What the shares ought to be."""

if __name__ == "__main__":
    main()
