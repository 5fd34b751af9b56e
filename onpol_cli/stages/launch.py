"""`onpol train ...` and `onpol distill ...`: compose, check, start (in this process or under torchrun), report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onpol_cli.core.compose import as_dict, compose, to_yaml
from onpol_cli.core.config import Config
from onpol_cli.core.console import say, show_json, show_text
from onpol_cli.core.errors import OnpolError
from onpol_cli.runs.rundir import METRICS, read_lines, read_manifest
from onpol_cli.stages.session import follower

COMMANDS = {"tutor": ["train", "tutor"], "student": ["distill", "student"]}
DEFAULT_METHOD = {"tutor": "sft", "student": "opd"}


def with_default_method(role: str, overrides: Sequence[str]) -> list[str]:
    """`overrides` with the command's own method unless one is named."""
    named = any(word.startswith("method=") for word in overrides)
    return list(overrides) if named else [f"method={DEFAULT_METHOD[role]}", *overrides]


def launch_training(role: str, overrides: Sequence[str], *, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Train a tutor or distil a student and say where it lies."""
    words = with_default_method(role, overrides)
    config = compose(words)
    command = ["onpol", *COMMANDS[role], *overrides]
    if dry_run:
        return dry(config, command, as_json, role)
    from onpol_cli.learner.parallel import under_torchrun
    from onpol_cli.stages.torchrun import adopt_processes, launch_processes

    adopt_processes(config)
    if config.parallel.nproc * config.parallel.nnodes > 1 and not under_torchrun():
        launch_processes(config, command[1:], resume=resume, as_json=as_json)
        return None
    from onpol_cli.stages.train import train_model

    path = train_model(config, role=role, command=command, resume=resume)
    if follower():
        return None
    return report(path, as_json, f"Evaluate it: onpol eval --bench tiny-edit-ood --model {path.name}")


def launch_base(overrides: Sequence[str], *, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Pretrain a base model."""
    config = compose(["experiment=base", "method=pretrain", *overrides])
    command = ["onpol", "train", "base", *overrides]
    if dry_run:
        return dry(config, command, as_json, "base")
    from onpol_cli.stages.torchrun import adopt_processes

    adopt_processes(config)
    if config.parallel.nproc * config.parallel.nnodes > 1:
        raise OnpolError("train base runs in one process. Leave parallel.nproc and parallel.nnodes out.")
    from onpol_cli.stages.base import train_base

    path = train_base(config, command=command, resume=resume)
    return report(path, as_json, f"Use it: onpol train tutor model.path={path / 'checkpoint'}")


def dry(config: Config, command: Sequence[str], as_json: bool, role: str) -> None:
    """Check what can be checked without running, and print the composed configuration."""
    if role != "base":
        check(config, role)
    if as_json:
        show_json({"command": list(command), "config": as_dict(config), "dry_run": True})
    else:
        show_text(to_yaml(config))


def check(config: Config, role: str) -> None:
    """Method, tutor and model: everything that can be refused before any weight is read."""
    from onpol_cli.methods.registry import check_method
    from onpol_cli.stages.build import find_checkpoint, policy_config, require_tutor

    check_method(config.method)
    if role == "student" and config.method.needs_tutor and not config.method.tutors:
        find_checkpoint(require_tutor(config), config, fetch=False)
    policy_config(config, fetch=False)


def report(path: Path, as_json: bool, advice: str) -> None:
    """Say where the run lies and how it ended."""
    manifest = read_manifest(path)
    rows = list(read_lines(path / METRICS))
    if as_json:
        show_json(result(path, manifest, rows))
        return
    say(f"Done in {manifest.get('wall_s', 0):.0f} s: {path}")
    say(advice)
    show_text(str(path))


def result(path: Path, manifest: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON object of a finished training run."""
    return {
        "run": path.name,
        "path": str(path),
        "checkpoint": str(path / "checkpoint"),
        "status": manifest.get("status"),
        "steps": len([row for row in rows if row.get("step", 0) >= 0]),
        "wall_s": manifest.get("wall_s"),
        "metrics": rows[-1] if rows else {},
    }
