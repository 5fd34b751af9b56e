"""`onpol doctor`, and the preflight before each run: what can run here, what cannot, what to do about it.

Chooses and shows the checks of `doctor_checks`. Reads no weights, downloads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config
from onpol_cli.core.console import LOGGER, say, show, show_json
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.stages import doctor_checks as checks
from onpol_cli.stages.doctor_checks import Finding, Level

if TYPE_CHECKING:
    from rich.table import Table

MARKS = {Level.ok: ("ok", "green"), Level.warning: ("warning", "yellow"), Level.error: ("error", "red")}


def run_doctor(overrides: Sequence[str], *, plan: bool, as_json: bool) -> None:
    """Show the findings, or with `plan` the memory estimate.

    Raises:
        RunFailed: the configured experiment cannot run here.
    """
    config = compose(overrides)
    if plan:
        return show_plan(config, as_json)
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


def show_plan(config: Config, as_json: bool) -> None:
    """The estimated memory per GPU, by part, GiB.

    Raises:
        RunFailed: it does not fit this machine's GPU.
    """
    from onpol_cli.learner.planner import plan

    found = plan(config)
    estimate: dict[str, Any] = asdict(found)
    show_json(estimate) if as_json else show(plan_table(estimate))
    if found.verdict == "does not fit":
        raise RunFailed(f"{found.peak:.1f} GiB are wanted, {found.available:.1f} are there. {found.advice}")


def plan_table(estimate: Mapping[str, Any]) -> Table:
    """Names and numbers of an estimate, parts indented under their heading."""
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in estimate.items():
        table.add_row(name, "" if isinstance(value, Mapping) else _number(value))
        for part, size in value.items() if isinstance(value, Mapping) else ():
            table.add_row(f"  {part}", _number(size))
    return table


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


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
        checks.check_benches,
        checks.check_tutors,
        checks.check_sampling,
    )
    findings = [finding for part in parts for finding in part(config)]
    return list(dict.fromkeys([*findings, *row_findings(config, overrides)]))


def row_findings(config: Config, overrides: Sequence[str]) -> list[Finding]:
    """What is wrong with single rows of the experiment's matrix. Their tutors are made by earlier rows."""
    found = []
    for row in config.matrix.rows:
        own = compose([*overrides, *row.overrides])
        for finding in [*checks.check_sampling(own), *checks.check_context(own)]:
            if finding.level is not Level.ok:
                found.append(replace(finding, check=f"row {row.name}: {finding.check}"))
    return found


def preflight(config: Config, role: str) -> list[Finding]:
    """The checks that a training run makes before anything is loaded or written.

    Args:
        role: `tutor` or `student`; only a student needs a tutor.
    """
    parts = [checks.check_disk, checks.check_model, checks.check_sampling, checks.check_sync]
    parts += [checks.check_compile, checks.check_liger, *([checks.check_tutors] if role == "student" else [])]
    engines = [f for f in checks.check_engines(config) if f.check == f"engine {config.rollout.engine.value}"]
    task = [f for f in checks.check_benches(config) if f.check == f"data of {config.task.name}"]
    return [*(finding for part in parts for finding in part(config)), *engines, *task]


def require_preflight(config: Config, role: str) -> None:
    """Log warnings of `preflight`; refuse to start on errors.

    Raises:
        OnpolError: the first error and its remedy.
    """
    for finding in preflight(config, role):
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
