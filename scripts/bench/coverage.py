"""How often the intervals of `onpol compare` contain the truth, and how often its tests err, by simulation.

    python scripts/bench/coverage.py [--repeats 1000] [--out results/bench/coverage.json]

The cells and the seed are those of `tests/unit/comparison/test_coverage.py` (its large run). Minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

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
    options = parser.parse_args()
    start = time.process_time()
    kinds: dict[str, Any] = {}
    for name, kind in KINDS.items():
        cells = [simulate(Setting(n, p, **kind), options.repeats) for n in SIZES for p in RATES]
        kinds[name] = {part: summary([getattr(cell, part) for cell in cells]) for part in PARTS}
        short = {part: [kinds[name][part][k] for k in ("mean", "min", "max")] for part in PARTS}
        sys.stdout.write(f"{name}: {json.dumps(short)}\n")
        sys.stdout.flush()
    whole = {
        "repeats": options.repeats,
        "n": SIZES,
        "p": RATES,
        "cpu_s": round(time.process_time() - start),
        "kinds": kinds,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


PARTS = ("score", "difference", "false_positives")

if __name__ == "__main__":
    main()
