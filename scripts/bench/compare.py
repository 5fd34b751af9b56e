"""Times `compare` on 12 runs x 576 problems.

    python scripts/bench/compare.py [--trl PATH] [--out results/bench/compare.json]

Measures seconds of a whole fresh process (interpreter start included, best of --repeats), that it imported no
torch, and beside it `onpol --help` and, where it is installed, `trl --help`. The machine's load is told: figures
of a busy machine are upper bounds. Ends with one JSON object, whose ratios are of the named processes.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from facts import tell

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit" / "comparison")]

from comparison_runs import LABELS, write_eval  # noqa: E402

PROGRAM = """
import sys
from pathlib import Path
from onpol_cli.comparison.compare import compare
from onpol_cli.core.console import show
show(compare([Path(p) for p in sys.argv[2:]], sys.argv[1]).terminal())
assert not {"torch", "transformers", "vllm"} & set(sys.modules)
"""


def seconds(command: list[str], repeats: int) -> dict[str, float]:
    """Best wall-clock and processor time of a process over `repeats` runs."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
    return {"wall": round(min(wall), 3), "cpu": round(min(cpu), 3)}


def main() -> None:
    """Make the run directories, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default=None, metavar="PATH", help="The trl program; default: on PATH.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        labels = [label for label in LABELS if label != "base"]
        paths = [write_eval(Path(folder), label, seed, problems=288) for label in labels for seed in (0, 1, 2)]
        claims = str(ROOT / "conf" / "claims" / "paper.yaml")
        figures: dict[str, Any] = {
            "bench": "compare",
            "unit": f"seconds of a whole process, best of {options.repeats}",
            "compare_12_runs_x_576_problems": seconds(
                [sys.executable, "-c", PROGRAM, claims, *map(str, paths)], options.repeats
            ),
            "onpol_help": seconds([sys.executable, "-m", "onpol_cli.cli", "--help"], options.repeats),
            "trl_help": _optional(options.trl or "trl", options.repeats),
            "load_average_before": round(load, 2),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
    tell(figures | {"ratios": ratios(figures)}, options.out)


def ratios(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What comparing costs above the start of the program, and that start beside TRL's where TRL is."""
    compared, own, trl = (figures[name] for name in ("compare_12_runs_x_576_problems", "onpol_help", "trl_help"))
    pairs = {"compare over onpol --help": (compared, own)}
    if trl:
        pairs["onpol --help over trl --help"] = (own, trl)
    return {name: {unit: round(a[unit] / b[unit], 3) for unit in a} for name, (a, b) in pairs.items()}


def _optional(program: str, repeats: int) -> dict[str, float] | None:
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    return seconds([path, "--help"], repeats) if path else None


if __name__ == "__main__":
    main()
