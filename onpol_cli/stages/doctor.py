"""`onpol doctor`, and the preflight before each run: what can run here, what cannot, what to do about it.

Chooses and shows the checks of `doctor_checks`. Reads no weights, downloads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config
from onpol_cli.core.console import LOGGER, say, show, show_json
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.stages import doctor_checks as checks
from onpol_cli.stages.doctor_checks import Finding, Level
from onpol_cli.stages.doctor_memory import check_memory, check_precision, composed_row, show_plan
from onpol_cli.stages.doctor_rates import check_rates

if TYPE_CHECKING:
    from rich.table import Table

MARKS = {Level.ok: ("ok", "green"), Level.warning: ("warning", "yellow"), Level.error: ("error", "red")}


def run_doctor(overrides: Sequence[str], *, plan: bool, as_json: bool, gpu_gib: float | None = None) -> None:
    """Show the findings, or with `plan` the memory estimate.

    Args:
        gpu_gib: memory of the GPU to plan for; default: this machine's.

    Raises:
        OnpolError: a GPU is given, but no plan is asked for.
        RunFailed: the configured experiment cannot run here.
    """
    config = compose(overrides)
    if gpu_gib is not None and not plan:
        raise OnpolError("--gpu-gib says what to plan for: use it with --plan.")
    if plan:
        return show_plan(config, overrides, as_json, gpu_gib)
    findings = examine(config, overrides)
    bad = [finding for finding in findings if finding.level is Level.error]
    if as_json:
        show_json({"ok": not bad, "findings": [asdict(finding) for finding in findings]})
    else:
        show(findings_table(findings))
        if not bad:
            warned = sum(finding.level is Level.warning for finding in findings)
            say(f"Ready: this configuration can run here{f' ({warned} warnings)' if warned else ''}.")
    if bad:
        raise RunFailed(f"This cannot run here: {'; '.join(f'{f.check}: {f.message}' for f in bad)}.")
    return None


def examine(config: Config, overrides: Sequence[str] = ()) -> list[Finding]:
    """Every finding about a configuration and, where its experiment has a matrix, about the matrix's rows."""
    parts = (
        checks.check_device,
        checks.check_compile,
        checks.check_liger,
        checks.check_engines,
        checks.check_sync,
        checks.check_isolation,
        checks.check_disk,
        checks.check_model,
        checks.check_eval_context,
        check_memory,
        check_precision,
        checks.check_benches,
        checks.check_tutors,
        checks.check_sampling,
    )
    findings = [*(finding for part in parts for finding in part(config)), *check_rates(config, overrides)]
    return list(dict.fromkeys([*findings, *row_findings(config, overrides)]))


def row_findings(config: Config, overrides: Sequence[str]) -> list[Finding]:
    """What is wrong with single rows of the experiment's matrix. Their tutors are made by earlier rows."""
    found = []
    for row in config.matrix.rows:
        own = composed_row(row, config, overrides)
        rates = check_rates(own, [*overrides, *row.overrides])
        trained = [] if row.command == "base" else [*check_memory(own), *check_precision(own), *rates]
        room = [*checks.check_context(own), *checks.check_eval_context(own)]
        for finding in [*checks.check_sampling(own), *room, *trained]:
            if finding.level is not Level.ok:
                found.append(replace(finding, check=f"row {row.name}: {finding.check}"))
    return found


def preflight(config: Config, role: str, words: Sequence[str] = ()) -> list[Finding]:
    """The checks that a training run makes before anything is loaded or written.

    Args:
        role: `tutor` or `student`; only a student needs a tutor.
        words: of the command line.
    """
    parts = [checks.check_disk, checks.check_model, check_memory, check_precision]
    parts += [checks.check_sampling, checks.check_sync]
    parts += [checks.check_compile, checks.check_liger, *([checks.check_tutors] if role == "student" else [])]
    engines = [f for f in checks.check_engines(config) if f.check == f"engine {config.rollout.engine.value}"]
    task = [f for f in checks.check_benches(config) if f.check == f"data of {config.task.name}"]
    return [*(finding for part in parts for finding in part(config)), *check_rates(config, words), *engines, *task]


def require_preflight(config: Config, role: str, words: Sequence[str] = ()) -> None:
    """Log warnings of `preflight`; refuse to start on errors.

    Raises:
        OnpolError: the first error and its remedy.
    """
    for finding in preflight(config, role, words):
        if finding.level is Level.warning:
            LOGGER.warning("%s: %s. %s", finding.check, finding.message, finding.remedy)
        if finding.level is Level.error:
            raise OnpolError(f"{finding.message}. {finding.remedy}".strip())


def findings_table(findings: Sequence[Finding]) -> Table:
    """One line a finding."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=False)
    for name in ("", "check", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        word, colour = MARKS[finding.level]
        table.add_row(Text(word, style=colour), finding.check, finding.message, finding.remedy)
    return table
