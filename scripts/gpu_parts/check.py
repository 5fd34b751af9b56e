"""The parts in order, each guarded: own time limit, and a worker process that a failure takes down alone.

The parent imports no torch. A worker runs parts one after another and reports each figure as a line of
JSON the moment it is known; after a failure, a crash or a part's time limit the next part gets a fresh
worker, since a device error or an out-of-memory leaves a process that nothing can be measured in.
The time of all counts from this module's import, the search for a device included. `--out` holds what is
known from the start on; SIGTERM and Ctrl-C end the check with its JSON object, too.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from onpol_cli.core.errors import RunFailed
from onpol_cli.core.files import write_atomic

BEGAN = time.monotonic()
PARTS = {
    "machine": 20,
    "loss": 30,
    "learner-0.6b": 45,
    "learner-0.6b-lora": 30,
    "curve": 65,
    "sampler-0.6b": 35,
    "mismatch": 20,
    "learner-4b": 60,
    "learner-4b-lora": 45,
    "sampler-4b": 45,
    "learner-0.6b-float32": 30,
    "vllm-0.6b": 55,
}
"""Parts in order of use, with their share of the time, seconds of an 8-minute check."""
WHOLE = sum(PARTS.values())
LEAST = 3.0
"""A part with fewer seconds left than this is not begun."""
MARGIN = 6.0
"""Seconds at the end that no part may use: ending the worker, writing."""
START = 60.0
"""Seconds that a worker may need to import torch, beside the first part's own."""
SCRIPT = Path(__file__).resolve().parents[1] / "gpu_check"


def work(names: list[str], device: str, small: bool) -> None:
    """The worker: run parts, write lines to the real stdout; other prints go to stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**line: Any) -> None:
        channel.write(json.dumps(line) + "\n")

    from gpu_parts.common import Setting

    runs, setting = runners(), Setting(device, small)
    for name in names:
        say(begin=name)
        start = time.perf_counter()
        try:
            for key, value in runs[name](setting):
                say(part=name, key=key, value=value)
        except Exception as error:  # the boundary of this process: whatever it is, it is recorded and the others go on
            first = str(error).strip().splitlines()[:1]
            say(end=name, status="failed", error=f"{type(error).__name__}: {' '.join(first)}"[:400])
            return
        say(end=name, status="done", seconds=round(time.perf_counter() - start, 2))
        gc.collect()  # models are in reference cycles; what is left would count in the next part's memory


def runners() -> dict[str, Any]:
    """The function of each part."""
    from gpu_parts.curve import curve
    from gpu_parts.learning import learner, loss
    from gpu_parts.machine import machine
    from gpu_parts.sampling import sampler, trained, vllm

    return {
        "machine": machine,
        "loss": loss,
        "learner-0.6b": partial(learner, size="0.6b"),
        "learner-0.6b-lora": partial(learner, size="0.6b", lora=True),
        "curve": curve,
        "sampler-0.6b": partial(sampler, size="0.6b", engine="hf"),
        "mismatch": trained,
        "learner-4b": partial(learner, size="4b"),
        "learner-4b-lora": partial(learner, size="4b", lora=True),
        "sampler-4b": partial(sampler, size="4b", engine="hf"),
        "learner-0.6b-float32": partial(learner, size="0.6b", master=True),
        "vllm-0.6b": partial(vllm, size="0.6b"),
    }


@dataclass
class Worker:
    """A process that runs parts, and its lines."""

    process: subprocess.Popen[str]
    lines: queue.Queue[dict[str, Any] | None]

    @classmethod
    def start(cls, names: list[str], device: str, small: bool) -> Worker:
        """Begin with `names` in their order."""
        words = [sys.executable, str(SCRIPT), "--device", device, "--work", *names]
        process = subprocess.Popen(words + (["--small"] if small else []), stdout=subprocess.PIPE, text=True)
        lines: queue.Queue[dict[str, Any] | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(json.loads(line))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        return cls(process, lines)

    def line(self, deadline: float) -> dict[str, Any] | None:
        """The next line; None at `deadline` of the monotonic clock or when the process has ended."""
        try:
            return self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None

    def stop(self) -> int | None:
        """End it; its exit status, or none if the device does not let go of it."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=2.0)
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=3.0)
        return None


class Stopped(BaseException):
    """A signal asks for the end."""


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Signal handler; `timeout` sends its signal twice, so that further ones are ignored."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


@dataclass
class Report:
    """What is known so far.

    Attributes:
        out: the file that always holds it, if any.
        device, small: what is measured on, and in which shapes.
        records: by part.
    """

    out: Path | None
    device: str = "unknown"
    small: bool = False
    records: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """One JSON object."""
        seconds = round(time.monotonic() - BEGAN, 1)
        result = {"device": self.device, "small": self.small, "seconds": seconds}
        return json.dumps({**result, "ratios": ratios(self.records), "parts": self.records})

    def keep(self, text: str = "") -> None:
        """Write `text`, or what is known, to the file; if that fails, stdout still gets it in the end."""
        if self.out is None:
            return
        try:
            write_atomic(self.out, (text or self.text()) + "\n")
        except RunFailed as error:
            print(error, file=sys.stderr)


def run_part(name: str, worker: Worker, limit: float, end: float, report: Report) -> None:
    """Follow one part to its end, its failure, its limit (counted from its beginning), or the `end` of all."""
    record: dict[str, Any] = {"status": "running", "limit_s": round(limit, 1), "found": {}}
    report.records[name] = record
    report.keep()
    deadline = min(end, time.monotonic() + START + limit)
    while (line := worker.line(deadline)) is not None:
        if line.get("begin") == name:
            deadline = min(end, time.monotonic() + limit)
        elif line.get("part") == name:
            record["found"][line["key"]] = line["value"]
            print(f"  {line['key']}: {json.dumps(line['value'])}", file=sys.stderr)
            report.keep()
        elif line.get("end") == name:
            record |= {key: value for key, value in line.items() if key != "end"}
            return
    if time.monotonic() < deadline:
        record |= {"status": "failed", "error": f"the process ended with status {worker.stop()}"}
    else:
        error = f"not finished within {limit:.0f} s, or when the time for all parts was over"
        record |= {"status": "timeout", "error": error}


def run_all(names: list[str], report: Report, minutes: float, end: float) -> None:
    """All parts, until `end` of the monotonic clock; each has its share of `minutes`."""
    worker: Worker | None = None
    try:
        for place, name in enumerate(names):
            if end - time.monotonic() < LEAST:
                error = f"the {minutes:g} minutes are over"
                report.records[name] = {"status": "skipped", "error": error, "found": {}}
                continue
            print(f"{name} ...", file=sys.stderr)
            mates = together(names[place:])
            worker = worker or Worker.start(mates, report.device, report.small)
            run_part(name, worker, 1.5 * PARTS[name] * 60 * minutes / WHOLE, end, report)
            report.keep()
            record = report.records[name]
            print(f"{name}: {record['status']} {record.get('error', '')}", file=sys.stderr)
            if record["status"] != "done":
                worker.process.kill()
            if record["status"] != "done" or mates == [name]:
                worker.stop()
                worker = None
    except Stopped:
        if worker is not None:
            worker.process.kill()
        raise
    if worker is not None:
        worker.stop()


def mark_stopped(names: list[str], report: Report, by: str) -> None:
    """Say of every part that was not measured to its end why."""
    for name in names:
        record = report.records.setdefault(name, {"status": "skipped", "error": f"stopped by {by}", "found": {}})
        if record["status"] == "running":
            record |= {"status": "stopped", "error": f"stopped by {by}"}


def together(names: list[str]) -> list[str]:
    """The first of `names` and those after it that may share its worker: vLLM wants a device to itself."""
    if names[0].startswith("vllm"):
        return names[:1]
    return list(itertools.takewhile(lambda name: not name.startswith("vllm"), names))


def ratios(records: dict[str, Any]) -> dict[str, Any]:
    """Figures that compare: MFU against the measured matmul peak, loss against plain, vLLM against hf."""
    found = {name: record["found"] for name, record in records.items()}
    result: dict[str, Any] = {}
    for name, figures in found.items():
        peak = found.get("machine", {}).get("matmul_bfloat16_tflops")
        for kind in ("sft", "opd", "scoring"):
            if peak and name.startswith("learner") and kind in figures:
                result[f"{name} {kind} mfu"] = round(figures[kind]["tflops"] / peak, 4)
    for dtype, rows in found.get("loss", {}).items():
        if "plain" in rows:
            for route in ("log-probs", "with entropy", "weighted sum"):
                for key in ("seconds", "gib_above_inputs"):
                    if rows["plain"][key]:
                        result[f"loss {dtype} {route} {key}"] = round(rows[route][key] / rows["plain"][key], 4)
    hf, fast = (found.get(name, {}).get("generation") for name in ("sampler-0.6b", "vllm-0.6b"))
    if hf and fast:
        result["vllm over hf tokens_per_s"] = round(fast["tokens_per_s"] / hf["tokens_per_s"], 3)
    return result


def usable(device: str, end: float) -> str:
    """`cpu`, `cuda`, or `unknown` at `end`; asks a process of its own, so that this one never touches the device."""
    if device != "auto":
        return device
    words = [sys.executable, "-c", "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"]
    left = max(0.0, end - time.monotonic())
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=left)
    except subprocess.TimeoutExpired:
        return "unknown"
    return done.stdout.strip()


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    made.add_argument("--small", action="store_true", help="shapes that a CPU runs in seconds")
    made.add_argument("--minutes", type=float, default=8.0, help="of the whole check, its start included")
    made.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of: {', '.join(PARTS)}")
    made.add_argument("--out", type=Path, help="also write the JSON object here, after every figure")
    made.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    return made


def main(description: str | None) -> int:
    """Run the check; 0 if every part was measured, 128 plus the signal that stopped it, else 1."""
    args = parser(description).parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.work:
        work(args.work, args.device, args.small)
        return 0
    names, report, end = args.only or list(PARTS), Report(args.out), BEGAN + 60 * args.minutes - MARGIN
    report.keep()
    status = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        report.device = usable(args.device, end)
        if report.device == "cpu" and not args.small:
            print("No GPU here: measuring the small shapes on the CPU (--device cpu --small).", file=sys.stderr)
        report.small = args.small or report.device == "cpu"
        run_all(names, report, args.minutes, end)
    except Stopped as signalled:
        mark_stopped(names, report, str(signalled))
        status = 128 + signal.Signals[str(signalled)]
    for number in (signal.SIGTERM, signal.SIGINT):  # what is left takes no time
        signal.signal(number, signal.SIG_IGN)
    text = report.text()
    report.keep(text)
    print(text, flush=True)
    return status or int(any(record["status"] != "done" for record in report.records.values()))
