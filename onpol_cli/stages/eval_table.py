"""How one evaluation is shown: the summary object of a bench and the table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onpol_cli.core.types import Outcome

if TYPE_CHECKING:
    from rich.table import Table

    from onpol_cli.core.types import Problem
    from onpol_cli.evaluation.records import Row


def bench_summary(problems: Sequence[Problem], lines: Mapping[float, list[Row]]) -> dict[str, Any]:
    """The summary of a bench: the first temperature's numbers, and every temperature's under its own key."""
    from onpol_cli.evaluation.summary import summarise

    by_temperature = {f"{temperature:g}": summarise(problems, rows) for temperature, rows in lines.items()}
    first = next(iter(by_temperature.values()))
    return {**first, "temperatures": by_temperature}


def summary_table(result: Mapping[str, Any]) -> Table:
    """One row per bench and temperature: n, metrics with 95% intervals, outcomes.

    Under it, where known, the same of the problems whose original passes in this environment.
    """
    from rich.table import Table

    from onpol_cli.evaluation.summary import USABLE

    table = Table(title=f"{result['run']} (95% intervals)", title_justify="left")
    names = list(dict.fromkeys(name for bench in result["benches"].values() for name in bench["metrics"]))
    for column in ("bench", "n", *names, *(outcome.value for outcome in Outcome)):
        table.add_column(column, justify="left" if column == "bench" else "right", no_wrap=True)
    for bench, summary in result["benches"].items():
        parts = summary.get("temperatures") or {"": summary}
        for temperature, part in parts.items():
            name = f"{bench} T={temperature}" if temperature else bench
            outcomes = [str(part["outcomes"].get(outcome.value, 0)) for outcome in Outcome]
            table.add_row(name, str(part["n"]), *(cell(part["metrics"].get(n)) for n in names), *outcomes)
            if known := part.get("groups", {}).get("usable", {}).get(USABLE):
                metrics = known["metrics"]
                table.add_row(f"  {USABLE}", str(known["n"]), *(cell(metrics.get(n)) for n in names))
    return table


def cell(metric: Mapping[str, float | None] | None) -> str:
    """`value [low, high]`."""
    if metric is None or metric["value"] is None:
        return "-"
    if metric.get("low") is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
