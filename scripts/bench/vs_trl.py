#!/usr/bin/env python
"""SFT and on-policy distillation, side by side with TRL, each side in its own interpreter.

    python3.11 -m venv ../env-trl
    ../env-trl/bin/pip install "torch>=2.11,<2.14" "trl==1.16.0"
    python scripts/bench/vs_trl.py --trl-python ../env-trl/bin/python --out results/bench/vs_trl.json

Sections (name some to run only these): `sft`, `distil` (64 prompts, one completion each) and `distil-groups`
(8 prompts x 8 completions), each in float32 and bfloat16 (`sft:float32`, ...).

The same on both sides: the shipped tiny base, a teacher trained from it, prompts and examples in the same order,
48 generated tokens a completion whatever is sampled, all of them trained, reverse KL over the whole vocabulary at
temperature 1 and top_p 1, one optimiser step a batch, fused AdamW with the same constants and clipping, threads.
TRL's part is its stable trainers without gradient checkpointing; variants (attention, torch.compile, micro-batch,
order by length) are tried first and the fastest counts. Ours is the loop of a run with default settings, weight sync
and canary included. On one batch both sides must give the same losses and gradient norms, else nothing is timed.

`distil` also has our sampled form (the policy gradient of one log-prob a token) beside the full divergence.
Processes alternate; each warms up (compilation is there, and reported apart), then times its steps. Figures are the
median and minimum over the steps of all processes of a side, wall and CPU seconds, and seconds by phase. `--out`
keeps sections measured earlier. Ends with one JSON object: ratios above 1 mean that onpol is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from facts import tell

ROOT = Path(__file__).resolve().parents[2]
SIDES = Path(__file__).parent / "vs_trl_sides"
SHAPES = {
    "sft": {"part": "sft", "batch": 16},
    "distil": {"part": "distil", "prompts": 64, "group": 1, "length": 48},
    "distil-groups": {"part": "distil", "prompts": 8, "group": 8, "length": 48},
}
DTYPES = ("float32", "bfloat16")
SECTIONS = tuple(f"{shape}:{dtype}" for shape in SHAPES for dtype in DTYPES)
STEPS = {"sft": (10, 4), "distil": (4, 2)}
"""Timed steps of a process: in the rounds, in the trials of variants."""
WARMUP = {"sft": 2, "distil": 1}
PROBLEMS = 1280
TOLERANCE = 1e-4
"""Largest relative difference of losses and gradient norms between the sides, float32."""
Job = dict[str, Any]


def variants(part: str, batch: int) -> list[dict[str, Any]]:
    """Ways to run TRL: the plain one first, then one change or two at a time.

    `compile`: `no`, `option` (`torch_compile=True`), or `backbone` (the decoder compiled in place: the option does
    not reach the distillation loss, which calls the backbone beside the compiled wrapper).
    """
    plain = {"attention": "sdpa", "compile": "no", "micro": batch, "order": "sequential"}
    eager = {**plain, "attention": "eager"}
    found = [plain, eager, {**plain, "micro": batch // 4}, {**eager, "compile": "option"}]
    if part == "sft":
        return [*found, {**plain, "order": "group_by_length"}]
    return [*found, {**plain, "compile": "backbone"}]


def name_of(variant: dict[str, Any]) -> str:
    """One line for people."""
    order = {"sequential": "", "group_by_length": ", by length"}[variant["order"]]
    return f"{variant['attention']}, compile {variant['compile']}, micro-batch {variant['micro']}{order}"


def summary(records: Sequence[Job]) -> dict[str, Any]:
    """Median and minimum seconds of a step over all processes of a side, medians by phase, tokens a second."""
    steps = [step for record in records for step in record["steps"]]
    phases = dict.fromkeys(name for step in steps for name in step if name not in ("total", "cpu"))
    tokens = {name: sum(record["tokens"][name] for record in records) / len(steps) for name in records[0]["tokens"]}
    return {
        "median_s": median(step["total"] for step in steps),
        "min_s": min(step["total"] for step in steps),
        "cpu_median_s": median(step["cpu"] for step in steps),
        "phases_s": {name: median(step.get(name, 0.0) for step in steps) for name in phases},
        "tokens_per_step": tokens,
        "tokens_per_s": sum(record["tokens"]["read"] for record in records) / sum(step["total"] for step in steps),
        "tokens_per_cpu_s": sum(record["tokens"]["read"] for record in records) / sum(step["cpu"] for step in steps),
        "warmup_s": [record["warmup_s"] for record in records],
        "processes": len(records),
        "steps": len(steps),
    }


def fastest(tried: Iterable[tuple[dict[str, Any], Job]], busy: bool = False) -> dict[str, Any]:
    """The variant that reads the most tokens a second (its batches may differ, its tokens do not)."""
    return max(tried, key=lambda pair: summary([pair[1]])["tokens_per_cpu_s" if busy else "tokens_per_s"])[0]


def ratios(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """How much faster we are: by tokens a second over all steps, by median and best step, by CPU seconds."""
    return {
        "tokens_per_s": ours["tokens_per_s"] / peer["tokens_per_s"],
        "median_step": peer["median_s"] / ours["median_s"],
        "min_step": peer["min_s"] / ours["min_s"],
        "cpu_step": peer["cpu_median_s"] / ours["cpu_median_s"],
        "tokens_per_cpu_s": ours["tokens_per_cpu_s"] / peer["tokens_per_cpu_s"],
    }


def check_tokens(peer: Job, ours: Job, part: str) -> None:
    """Both sides must have trained the same number of tokens a step; SFT by length has other batches, same rows."""
    per_step = [record["tokens"]["trained"] / len(record["steps"]) for record in (peer, ours)]
    if part == "distil" and per_step[0] != per_step[1]:
        raise SystemExit(f"TRL trained {per_step[0]} tokens a step, onpol {per_step[1]}: not the same work.")


def check_losses(peer: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    """Relative differences of losses and gradient norms; too large a one ends the bench."""
    found = {name: abs(ours[name] / value - 1) for name, value in peer.items()}
    if peer.keys() != ours.keys() or max(found.values()) > TOLERANCE:
        raise SystemExit(f"The sides do not compute the same losses: TRL {peer}, onpol {ours}.")
    return found


class Sides:
    """Starts one process for each job and reads its JSON line."""

    def __init__(self, trl_python: Path, work: Path, threads: int, busy: bool) -> None:
        self.trl_python, self.common = trl_python, {"work": str(work), "threads": threads, "lr": 1e-4}
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        if busy:  # a spinning second thread would count as CPU time; waking a sleeping one costs both sides wall time
            self.environment["OMP_WAIT_POLICY"] = "PASSIVE"

    def run(self, side: str, job: Job) -> Job:
        """`peer`, `ours` or `prepare` on one job."""
        python = str(self.trl_python) if side == "peer" else sys.executable
        return call([python, str(SIDES / f"{side}.py"), json.dumps({**self.common, **job})], self.environment)


def call(command: list[str], environment: dict[str, str]) -> Job:
    """The last line of a process's output as JSON; its own errors end the bench."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{Path(command[1]).name} failed:\n{done.stderr[-2000:]}")
    result: Job = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def trials(sides: Sides, job: Job, busy: bool) -> dict[str, Any]:
    """Every variant of TRL once; the fastest and what all of them took. Compilation is in `warmup_s`."""
    batch = job.get("batch") or job["prompts"] * job["group"]
    tried = []
    for variant in variants(job["part"], batch):
        if busy and variant["compile"] != "no":
            continue
        record = sides.run("peer", {**job, "variant": variant, "steps": STEPS[job["part"]][1]})
        found = summary([record])
        times = f"{found['median_s']:.3f} s, CPU {found['cpu_median_s']:.3f} s, warm-up {record['warmup_s']:.1f} s"
        say(f"  {name_of(variant)}: {times}")
        tried.append((variant, record))
    names = [{"name": name_of(variant), **summary([record])} for variant, record in tried]
    return {"best": fastest(tried, busy), "busy": busy, "tried": names}


def section(sides: Sides, name: str, known: dict[str, Any] | None, rounds: int, busy: bool) -> dict[str, Any]:
    """Trials (unless `known`), then the sides in turn."""
    shape, dtype = name.split(":")
    job = {**SHAPES[shape], "dtype": dtype, "warmup": WARMUP[SHAPES[shape]["part"]], "signal": "reverse"}
    say(name)
    tried = known or trials(sides, job, busy)
    if not rounds:
        return {"trials": tried}
    timed = {**job, "steps": STEPS[job["part"]][0]}
    jobs = {"trl": ("peer", {**timed, "variant": tried["best"]}), "onpol": ("ours", timed)}
    if job["part"] == "distil":
        jobs["onpol_sampled"] = ("ours", {**timed, "signal": "sampled"})
    records: dict[str, list[Job]] = {side: [] for side in jobs}
    load = [os.getloadavg()[0]]
    for _ in range(rounds):
        for side, (program, work) in jobs.items():
            records[side].append(sides.run(program, work))
        check_tokens(records["trl"][-1], records["onpol"][-1], job["part"])
    load.append(os.getloadavg()[0])
    found = {side: summary(of) for side, of in records.items()}
    against = {side: ratios(found["trl"], found[side]) for side in found if side != "trl"}
    say("  " + ", ".join(f"{s} {v['median_s']:.3f} s, CPU {v['cpu_median_s']:.3f} s" for s, v in found.items()))
    return {"trials": tried, "load_average": load, **found, "ratios": against, "raw": records}


def say(line: str) -> None:
    """Progress."""
    sys.stderr.write(line + "\n")


def facts(trl_python: Path, threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    code = "import json; from importlib.metadata import version as v; print(json.dumps({n: v(n) for n in %r}))"
    names = ("torch", "transformers")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": os.cpu_count(),
        "threads": threads,
        "onpol": call([sys.executable, "-c", code % (names,)], dict(os.environ)),
        "trl": call([str(trl_python), "-c", code % ((*names, "trl"),)], dict(os.environ)),
    }


def short(result: dict[str, Any]) -> dict[str, Any]:
    """The final object: every section's ratios and medians."""
    found = {
        name: {
            "trl_variant": name_of(part["trials"]["best"]),
            "busy": part["trials"].get("busy", False),
            "load_average": part["load_average"],
            "median_s": {side: part[side]["median_s"] for side in ("trl", "onpol", "onpol_sampled") if side in part},
            "tokens_per_s": {side: part[side]["tokens_per_s"] for side in ("trl", "onpol")},
        }
        for name, part in result["sections"].items()
        if "ratios" in part
    }
    against = {name: result["sections"][name]["ratios"] for name in found}
    return {"bench": "vs_trl", "losses": result.get("losses"), "sections": found, "ratios": against}


def known_trials(result: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Trials of the same trainer and format that the file already holds."""
    shape, dtype = name.split(":")
    part = SHAPES[shape]["part"]
    for other, found in result["sections"].items():
        if other.endswith(dtype) and SHAPES[other.split(":")[0]]["part"] == part:
            trials_: dict[str, Any] = found["trials"]
            return trials_
    return None


def main() -> None:
    """Parse the command line, prepare, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"default all: {' '.join(SECTIONS)}")
    parser.add_argument("--trl-python", type=Path, required=True, help="interpreter of an environment with TRL")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side; 0 only tries TRL's variants")
    parser.add_argument(
        "--busy", action="store_true",
        help="other work runs here: choose TRL's variant by CPU seconds, do not try those that compile, threads "
        "that wait sleep",
    )
    parser.add_argument("--work", type=Path, help="folder for models and data, reused if filled; default a new one")
    parser.add_argument("--out", type=Path, help="JSON file with everything; sections not measured now are kept")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown sections {sorted(unknown)}; allowed: {' '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.work or Path(folder))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Everything, written after each section."""
    sides = Sides(options.trl_python, work, options.threads, options.busy)
    if not (work / "work.json").is_file():
        sides.run("prepare", {"problems": PROBLEMS, "work": str(work)})
    result: dict[str, Any] = {"sections": {}}
    if options.out and options.out.is_file():
        result = json.loads(options.out.read_text())
    result["facts"] = facts(options.trl_python, options.threads)
    peer, ours = (sides.run(side, {"part": "losses", "dtype": "float32"}) for side in ("peer", "ours"))
    result["losses"] = {"trl": peer, "onpol": ours, "relative_difference": check_losses(peer, ours)}
    say(f"losses agree within {max(result['losses']['relative_difference'].values()):.1e}")
    for name in options.sections or SECTIONS:
        result["sections"][name] = section(sides, name, known_trials(result, name), options.rounds, options.busy)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    tell(short(result), None)


if __name__ == "__main__":
    main()
