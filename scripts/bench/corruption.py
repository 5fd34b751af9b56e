"""Measure the corruption engine: what it makes of a pool, how fast, and whether it repeats itself.

    python scripts/bench/corruption.py --data LeetCodeDataset-v0.2.0-train.jsonl.gz --out /tmp/corruption

For each family set: builds the data set twice (the second time with another number of workers),
compares the bytes, checks every item (parses, signature kept, under 2,000 characters), runs
originals and corrupted programs once more. Ends with one JSON object: counts per family; its ratios are shares
of the items (yield: sources with an item, of all) and the speed of two workers over one.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facts import tell

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from onpol_cli.core.config import SandboxConfig
from onpol_cli.core.files import sha256_file
from onpol_cli.core.records import read_records
from onpol_cli.sandbox import Sandbox
from onpol_cli.tasks.minimal_edit.engine import FUNCTIONS
from onpol_cli.tasks.minimal_edit.prepare import LONGEST, PrepareOptions, prepare
from onpol_cli.tasks.minimal_edit.verify import verify


def headers(source: str) -> list[str]:
    """Signature, decorators and docstring of every function, as text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            parts = [node.name, ast.dump(node.args), *(ast.dump(item) for item in node.decorator_list)]
            found.append(repr([*parts, node.returns and ast.dump(node.returns), ast.get_docstring(node)]))
    return sorted(found)


def check_items(path: Path) -> dict[str, int]:
    """How many items parse, keep their signatures, are short enough, and differ from the original."""
    counts = {"items": 0, "parse": 0, "signature_kept": 0, "short": 0, "differ": 0}
    for record in read_records(path):
        counts["items"] += 1
        try:
            text = ast.unparse(ast.parse(record["corrupted"]))
        except SyntaxError:
            continue
        counts["parse"] += 1
        counts["signature_kept"] += headers(record["corrupted"]) == headers(record["original"])
        counts["short"] += len(record["corrupted"]) < LONGEST
        counts["differ"] += text != ast.unparse(ast.parse(record["original"]))
    return counts


def build(options: PrepareOptions, out: Path, workers: int) -> dict[str, Any]:
    """One data set from nothing; the report with bytes and speed."""
    out.unlink(missing_ok=True)
    out.with_name(out.name + ".partial").unlink(missing_ok=True)
    with Sandbox(SandboxConfig(workers=workers)) as sandbox:
        report = asdict(prepare(options, out, sandbox))
    return {**report, "sha256": sha256_file(out), "items_per_s": round(report["items"] / report["seconds"], 2)}


def measure(options: PrepareOptions, folder: Path) -> dict[str, Any]:
    """Everything about one family set."""
    out = folder / f"{options.families}.jsonl"
    second = build(options, out, workers=1)
    first = build(options, out, workers=2)
    with Sandbox(SandboxConfig(workers=2)) as sandbox:
        started = time.monotonic()
        found = verify(out, sandbox)
    return {
        **first,
        "one_worker_items_per_s": second["items_per_s"],
        "same_bytes_twice": first["sha256"] == second["sha256"],
        "checks": check_items(out),
        "originals_passed": found.originals_passed,
        "corrupted_failed": found.corrupted_failed,
        "verify_seconds": round(time.monotonic() - started, 1),
    }


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Shares of one family set, and what the second worker brings."""
    items = found["items"]
    shares = {f"items that {key}": found["checks"][key] for key in ("parse", "signature_kept", "short", "differ")}
    shares |= {"originals that pass": found["originals_passed"], "corrupted that fail": found["corrupted_failed"]}
    return {
        "yield": round(found["problems"] / found["sources"], 4),
        **{name: round(count / items, 4) for name, count in shares.items()},
        "two workers over one, items a second": round(found["items_per_s"] / found["one_worker_items_per_s"], 3),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="leetcode")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--families", nargs="+", default=["in-domain", "out-of-domain"])
    parser.add_argument("--max-corruptions", type=int, default=20)
    parser.add_argument("--per-problem", type=int, default=1)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    command = " ".join(["python", "scripts/bench/corruption.py", *sys.argv[1:]])
    results: dict[str, Any] = {"bench": "corruption", "command": command, "load": os.getloadavg()[0]}
    for families in given.families:
        options = PrepareOptions(
            given.source,
            families=families,
            max_corruptions=given.max_corruptions,
            per_problem=given.per_problem,
            seed=given.seed,
            limit=given.limit,
            data=given.data,
        )
        results[families] = measure(options, given.out)
    tell(results | {"ratios": {families: ratios(results[families]) for families in given.families}}, None)


if __name__ == "__main__":
    main()
