"""`onpol runs list|show|watch|prune`: run directories as a person sees them.

Reads the files of `runs`, shows them, and deletes what is asked for; computes no score. Imports no torch.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.compose import compose
from onpol_cli.core.console import say, show, show_json, show_text, stderr
from onpol_cli.runs.lookup import RunInfo, find_run, list_runs
from onpol_cli.runs.rundir import MANIFEST, METRICS, is_locked, last_line, read_lines
from onpol_cli.stages.progress import columns

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SUMMARY = "summary.json"
UNFINISHED = ("failed", "interrupted", "died", "damaged")
POLL_S = 0.5
COLOURS = {"done": "green", "running": "cyan", "interrupted": "yellow"} | dict.fromkeys(
    ("failed", "died", "damaged"), "red"
)


def root_of(runs_dir: Path | None) -> Path:
    """The folder of runs: given, else of the configuration."""
    return runs_dir if runs_dir is not None else Path(compose().paths.runs).expanduser()


# ---------------------------------------------------------------------------------------------- list


def list_all(runs_dir: Path | None, *, as_json: bool) -> None:
    """Every run, oldest first."""
    root = root_of(runs_dir)
    rows = [row_of(info) for info in list_runs(root)]
    if as_json:
        return show_json({"runs": rows})
    if not rows:
        return say(f"No runs in {root} yet. Make some: onpol reproduce tiny --quick")
    return show(list_table(rows))


def row_of(info: RunInfo) -> dict[str, Any]:
    """What the list says of one run."""
    last = last_line(info.path / METRICS)
    manifest = info.manifest
    return {
        "run": info.name,
        "path": str(info.path),
        "label": manifest.get("label"),
        "method": manifest.get("method_choice") or (manifest.get("evaluates") or {}).get("method_choice"),
        "role": manifest.get("model_role"),
        "seed": manifest.get("seed"),
        "status": info.state,
        "steps": int(last.get("step", -1)) + 1 if "step" in last else None,
        "reward": last.get("reward/mean"),
        "loss": last.get("loss/total"),
        "started": manifest.get("started"),
        "wall_s": manifest.get("wall_s"),
    }


def list_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The list as a table; age is counted from the start of the run."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("run", "label", "method", "seed", "status", "steps", "reward", "loss", "age"):
        table.add_column(name, justify="right" if name in ("seed", "steps", "reward", "loss", "age") else "left")
    for row in rows:
        status = Text(str(row["status"]), style=COLOURS.get(str(row["status"]), ""))
        words = [*(_text(row[name]) for name in ("run", "label", "method", "seed"))]
        numbers = [_text(row["steps"]), _number(row["reward"]), _number(row["loss"]), age(row["started"])]
        table.add_row(*words, status, *numbers)
    return table


def age(started: str | None, now: datetime.datetime | None = None) -> str:
    """Time since `started` (ISO 8601) as the largest fitting unit: 40s, 12m, 5h, 3d; `-` if unknown."""
    if not started:
        return "-"
    seconds = ((now or datetime.datetime.now(datetime.UTC)) - datetime.datetime.fromisoformat(started)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


# ---------------------------------------------------------------------------------------------- show


def show_run(name: str, runs_dir: Path | None, *, as_json: bool) -> None:
    """Provenance, last metrics, budget and, for evaluations, the summary of one run."""
    info = find_run(name, root_of(runs_dir))
    facts = describe(info)
    if as_json:
        return show_json(facts)
    for part in _sections(facts):
        show(part)
    return None


def describe(info: RunInfo) -> dict[str, Any]:
    """Everything that `runs show` says, as plain data."""
    summary = info.path / SUMMARY
    return {
        "run": info.name,
        "path": str(info.path),
        "status": info.state,
        "manifest": info.manifest,
        "metrics": last_line(info.path / METRICS),
        "budget": budget(list(read_lines(info.path / METRICS))),
        "benches": json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None,
    }


def budget(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The run's ledger: sums of `tokens/*` (tokens) and `time/*` (seconds) over all steps, and the peak memory (MiB).

    Shares and means that happen to live under `tokens/` are no costs and are left out.
    """
    totals: dict[str, float] = {"steps": float(sum(row.get("step", -1) >= 0 for row in rows))}
    for row in rows:
        for name, value in row.items():
            if name.startswith(("tokens/", "time/")) and not name.endswith("_share") and isinstance(value, int | float):
                totals[name] = totals.get(name, 0.0) + value
    peaks = [row["memory/peak_mb"] for row in rows if row.get("memory/peak_mb") is not None]
    return {**totals, "memory/peak_mb": max(peaks)} if peaks else totals


def _sections(facts: Mapping[str, Any]) -> list[RenderableType]:
    manifest = facts["manifest"]
    keys = ("label", "started", "wall_s", "command", "seed", "tutor", "onpol", "git_commit", "dirty", "python")
    origin = {"status": facts["status"], "path": facts["path"]}
    origin |= {key: manifest[key] for key in keys if manifest.get(key) is not None}
    origin["command"] = " ".join(manifest.get("command", []))
    parts: list[RenderableType] = [_pairs(facts["run"], origin)]
    parts += [_pairs("versions", manifest["versions"])] if manifest.get("versions") else []
    parts += [_pairs("last metrics", facts["metrics"])] if facts["metrics"] else []
    parts += [_pairs("budget (sums over steps)", facts["budget"])] if len(facts["budget"]) > 1 else []
    if facts["benches"]:
        from onpol_cli.stages.eval_table import summary_table

        parts.append(summary_table({"run": facts["run"], "benches": facts["benches"]}))
    return parts


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    return table


# ---------------------------------------------------------------------------------------------- watch


def watch_run(name: str, runs_dir: Path | None, *, once: bool, as_json: bool = False) -> None:
    """Follow the steps of a run until it ends; rows already there are shown first. Ctrl-C leaves the run alone."""
    info = find_run(name, root_of(runs_dir))
    if as_json:
        return show_json(state_of(info))
    if once:
        return show_text(headline(info))
    try:
        _follow_live(info) if sys.stderr.isatty() else _follow_plain(info)
    except KeyboardInterrupt:
        say("Stopped watching; the run goes on.")
    return None


def state_of(info: RunInfo) -> dict[str, Any]:
    """Status and newest metrics of a run, read afresh."""
    fresh = find_run(str(info.path), info.path)
    return {
        "run": fresh.name,
        "status": fresh.state,
        "planned_steps": fresh.manifest.get("planned_steps"),
        "metrics": last_line(info.path / METRICS),
    }


def headline(info: RunInfo) -> str:
    """The present state in a line."""
    state = state_of(info)
    metrics = state["metrics"]
    done, total = int(metrics.get("step", -1)) + 1, state["planned_steps"]
    words = [f"{state['run']}: {state['status']}", f"step {done}/{total or '?'}"]
    if state["status"] == "running" and total and "time/step" in metrics:
        words.append(f"ETA about {(total - done) * metrics['time/step']:.0f} s")
    return "  ".join([*words, *(f"{label} {value}" for label, value in columns(metrics))])


def _follow_plain(info: RunInfo) -> None:
    seen = ""
    while True:
        running = is_locked(info.path)
        line = headline(info)
        if line != seen:
            show_text(line)
            seen = line
        if not running:
            return
        time.sleep(POLL_S)


def _follow_live(info: RunInfo) -> None:
    from rich.live import Live

    with Live(console=stderr(), refresh_per_second=4) as live:
        while True:
            running = is_locked(info.path)
            live.update(_panel(info))
            if not running:
                return
            time.sleep(POLL_S)


def _panel(info: RunInfo) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar

    state = state_of(info)
    metrics = state["metrics"]
    done, total = int(metrics.get("step", -1)) + 1, state["planned_steps"]
    shown = {**dict(columns(metrics)), "seconds a step": f"{metrics.get('time/step', 0.0):.2f}"}
    parts: list[RenderableType] = [f"{state['status']}  step {done}/{total or '?'}"]
    parts += [ProgressBar(total=total, completed=done)] if total else []
    return Panel(Group(*parts, _pairs("", shown)), title=state["run"], title_align="left")


# ---------------------------------------------------------------------------------------------- prune


def prune_runs(runs_dir: Path | None, *, states_only: bool, really: bool, as_json: bool = False) -> None:
    """Delete runs that did not finish, or the resumable states of those that did; without `really` only name them."""
    root = root_of(runs_dir)
    targets = prunable(root, states_only)
    sizes = {path: size_mb(path) for path in targets}
    if really:
        for path in targets:
            shutil.rmtree(path)
    if as_json:
        rows = [{"path": str(path), "mb": round(mb, 1)} for path, mb in sizes.items()]
        return show_json({"deleted": really, "paths": rows})
    for path, mb in sizes.items():
        show_text(f"{'deleted' if really else 'would delete'} {path} ({mb:.1f} MB)")
    what = "states of finished runs" if states_only else "failed, interrupted or died runs"
    if not targets:
        return say(f"No {what} in {root}.")
    if not really:
        say(
            f"{sum(sizes.values()):.1f} MB in all; delete with --yes. Interrupted runs could still go on with --resume."
        )
    return None


def prunable(root: Path, states_only: bool) -> list[Path]:
    """Folders that `prune` would delete. A folder that holds another run is never one of them."""
    found = []
    for info in list_runs(root):
        if info.path == root or info.path.is_symlink():
            continue
        if states_only and info.state == "done" and (info.path / "state").is_dir():
            found.append(info.path / "state")
        if not states_only and info.state in UNFINISHED and not is_locked(info.path) and not _holds_runs(info.path):
            found.append(info.path)
    return found


def _holds_runs(path: Path) -> bool:
    return any(file.parent != path for file in path.rglob(MANIFEST))


def size_mb(path: Path) -> float:
    """Bytes of all files below `path`, in MB (10^6)."""
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file()) / 1e6
