"""Memory and number formats before a run: `onpol doctor --plan`, and the warnings of a run's preflight.

Owns which configurations are planned and how plans are shown; the arithmetic is `learner.planner`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config, Device, Dtype, RowConfig
from onpol_cli.core.console import show, show_json
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.stages import build
from onpol_cli.stages.doctor_checks import Finding, ok, warning

if TYPE_CHECKING:
    from rich.table import Table

    from onpol_cli.learner.planner import MemoryPlan

BF16_RATE = 1e-4
"""Rate below which AdamW moves few bf16 weights: those of 0.02 lie 1.2e-4 apart, and steps below half are rounded away.
After 50 equal steps of 1e-6, 1e-5, 1e-4 from weights of standard deviation 0.02, 2%, 16%, 88% of them have moved."""


def show_plan(config: Config, overrides: Sequence[str], as_json: bool, available: float | None = None) -> None:
    """The estimated memory per GPU: of every row of the experiment's matrix, and the gravest by part, GiB.

    Args:
        available: GiB of the GPU to plan for; default: this machine's.

    Raises:
        RunFailed: a row does not fit the GPU.
    """
    plans = plan_rows(config, overrides, available)
    row, worst = max(plans, key=lambda pair: pair[1].peak)
    estimate: dict[str, Any] = {"row": row, **asdict(worst)} if row else asdict(worst)
    if as_json:
        show_json(estimate | {"rows": [{"row": name, **asdict(found)} for name, found in plans]})
    else:
        if len(plans) > 1:
            show(rows_table(plans))
        show(plan_table(estimate))
    if worst.verdict == "does not fit":
        bad = ", ".join(name for name, found in plans if name and found.verdict == worst.verdict)
        where = f" (rows that do not fit: {bad})" if bad else ""
        raise RunFailed(f"{worst.peak:.1f} GiB are wanted, {worst.available:.1f} are there{where}. {worst.advice}")


def plan_rows(
    config: Config, overrides: Sequence[str], available: float | None = None
) -> list[tuple[str, MemoryPlan]]:
    """Name and plan of each trained row of the matrix; one plan without a name if there is none.

    A method given on the command line is planned alone: rows would choose their own.
    """
    from onpol_cli.learner.planner import plan

    rows = [row for row in config.matrix.rows if row.command != "base"]
    if not rows or any(word.startswith(("method=", "method.name=")) for word in overrides):
        return [("", plan(resolved(config), available))]
    return [(row.name, plan(resolved(composed_row(row, config, overrides)), available)) for row in rows]


def composed_row(row: RowConfig, config: Config, overrides: Sequence[str]) -> Config:
    """The configuration of a matrix's row. Its tutor is the base itself, or a row of which no model exists yet."""
    own = compose([*overrides, *row.overrides])
    bases = [other.name for other in config.matrix.rows if other.command == "base"]
    return replace(own, tutor=own.model.path if row.tutor in bases else row.tutor or own.tutor)


def rows_table(plans: Sequence[tuple[str, MemoryPlan]]) -> Table:
    """One line a row of the matrix."""
    from rich.table import Table

    table = Table("row", "method", "learner", "sampling", "peak, GiB", "verdict")
    for name, found in plans:
        parts = (sum(found.learner.values()), sum(found.rollout.values()), found.peak)
        table.add_row(name, found.method, *(f"{size:.1f}" for size in parts), found.verdict)
    return table


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


def resolved(config: Config) -> Config:
    """`config` with runs and `latest:` resolved to folders where they exist: the policy's and the tutors'."""
    tutors = {name: _path(spec, config) for name, spec in config.method.tutors.items()}
    method = replace(config.method, tutors=tutors)
    tutor = _path(config.tutor, config) if config.tutor else None
    return replace(config, model=build.policy_config(config, fetch=False), tutor=tutor, method=method)


def _path(spec: str, config: Config) -> str:
    try:
        return build.find_checkpoint(spec, config, fetch=False).path
    except OnpolError:
        return spec


def check_memory(config: Config) -> list[Finding]:
    """Whether the planned memory fits this machine's GPU. Asks no hub: models that are not here nor known are left out.

    A warning at most, since the plan is an estimate.
    """
    from onpol_cli.learner.planner import gpu_gib, plan
    from onpol_cli.learner.shapes import local_shape

    available = None if config.model.device is Device.cpu else gpu_gib()
    if available is None:
        return []
    try:
        own = resolved(config)
        found = plan(own, available) if local_shape(own.model.path, own.model.revision) else None
    except OnpolError:  # a model that is missing or of another kind: `check_model` tells of it
        return []
    if found is None:
        return []
    message = f"about {found.peak:.1f} of {available:.1f} GiB planned for {found.method} ({found.verdict})"
    if found.verdict == "fits":
        return [ok("memory", message)]
    return [warning("memory", message, f"{found.advice} By part: onpol doctor --plan.")]


def check_precision(config: Config) -> list[Finding]:
    """Whether steps of `optim.lr` are large enough for the format of the trained weights."""
    full = config.model.dtype is Dtype.bfloat16 and config.model.lora.rank == 0
    if not full or config.optim.lr >= BF16_RATE:
        return []
    message = (
        f"model.dtype=bfloat16 trains all weights in bf16, where steps of optim.lr={config.optim.lr:g} are mostly "
        "rounded away"
    )
    remedy = "Set model.dtype=float32 with learner.autocast=bfloat16 (learner=gpu), or model.lora.rank=16."
    return [warning("precision", message, remedy)]
