"""Pictures: training curves, scores with intervals, forgetting against KL, costs, corruption families.

matplotlib (Agg) is imported inside the functions. Each plot is a function from data to a Figure, None
if the runs hold nothing to draw; `draw_all` collects them. Lines differ in dash and marker as well as in
colour, so that they survive print and colour blindness.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onpol_cli.comparison.curves import series, smooth
from onpol_cli.comparison.frames import amount
from onpol_cli.comparison.judge import association_points
from onpol_cli.comparison.ledger import REWARD, SMOOTHED, course, validation_benches
from onpol_cli.comparison.records import EvalRun
from onpol_cli.comparison.scores import Scores
from onpol_cli.comparison.tables import Rows
from onpol_cli.core.errors import OnpolError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow (too pale on white).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6f6f6f", "#8c564b")
_DASHES = ("-", "--", "-.", ":")
_MARKS = "osD^vPX*"
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "onpol", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10, "legend.frameon": False, "figure.dpi": 150,
    "axes.titlelocation": "left",
}  # fmt: skip


def draw_all(scores: Scores, rows: Rows, families: Rows) -> dict[str, Figure]:
    """Every plot for which there is data, by file name."""
    import matplotlib as mpl

    makers: dict[str, Callable[[], Figure | None]] = {
        "training": lambda: training(scores),
        "scores": lambda: score_bars(scores, rows),
        "forgetting-kl": lambda: forgetting_kl(scores),
        "costs": lambda: cost_curves(scores),
        "families": lambda: family_map(families),
    }
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        drawn = {name: make() for name, make in makers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


CAPTIONS = {
    "training": "Training reward, entropy, KL to the teacher and answer length by step (means over seeds).",
    "scores": "Scores with 95% intervals at the headline temperature.",
    "forgetting-kl": "Forgetting against KL(base‖model) over checkpoints (RL's Razor, arXiv 2509.04259).",
    "costs": "Score against what was spent: validation Pass@1, or the reward of own samples (mean of 5 steps).",
    "families": "Pass@1 by corruption family.",
}


def encode(figure: Figure, kind: str) -> bytes:
    """PNG or SVG bytes, without dates (the same data give the same file)."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    meta: Mapping[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        # Constrained layout already leaves no margin; a tight box would draw everything once more.
        figure.savefig(buffer, format=kind, metadata=dict(meta), transparent=kind == "svg")
    return buffer.getvalue()


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.ravel())


def _colour(scores: Scores, label: str) -> str:
    return _COLOURS[scores.labels.index(label) % len(_COLOURS)]


def _mean_curve(runs: Sequence[EvalRun], name: str) -> tuple[Any, Any, Any, Any]:
    """(steps, mean, lowest, highest) over the seeds that logged `name` at each step."""
    by_step: dict[float, list[float]] = {}
    for run in runs:
        if run.train:
            for step, value in zip(*series(run.train.metrics, name), strict=True):
                by_step.setdefault(float(step), []).append(float(value))
    steps = sorted(by_step)
    values = [by_step[step] for step in steps]
    mean, low, high = (np.array([f(v) for v in values]) for f in (np.mean, np.min, np.max))
    return np.array(steps), mean, low, high


def training(scores: Scores) -> Figure | None:
    """The paper's figure: RL against OPD while they train. Shaded: range over seeds."""
    panels = (
        ("reward/mean", "reward"), ("entropy", "entropy, nats"), ("kl/teacher", "divergence from teacher, nats"),
        ("length/mean", "answer length, tokens"),
    )  # fmt: skip
    on_policy = [label for label in scores.labels if _has(scores, label, "reward/mean")]
    shown = [(name, title) for name, title in panels if any(_has(scores, label, name) for label in on_policy)]
    if not shown:
        return None
    figure, axes = _figure(min(2, len(shown)), (len(shown) + 1) // 2, 8, 2.6 * ((len(shown) + 1) // 2))
    for axis, (name, title) in zip(axes, shown, strict=False):
        for number, label in enumerate(on_policy):
            steps, mean, low, high = _mean_curve([r for r in scores.runs if r.label == label], name)
            if len(steps):
                colour = _colour(scores, label)
                axis.plot(steps, smooth(mean), _DASHES[number % 4], color=colour, label=label, linewidth=1.6)
                axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(title)
        axis.set_xlabel("step")
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    axes[0].legend()
    return figure


def _has(scores: Scores, label: str, name: str) -> bool:
    return any(
        run.train is not None and any(row.get(name) is not None for row in run.train.metrics)
        for run in scores.runs
        if run.label == label
    )


def score_bars(scores: Scores, rows: Rows) -> Figure | None:
    """One panel per bench and metric: value and interval of each label, dots for single seeds."""
    wanted = [row for row in rows if row["temperature"] == scores.headline]
    panels = list(dict.fromkeys((row["bench"], row["metric"], row["title"]) for row in wanted))
    if not panels:
        return None
    columns = min(3, len(panels))
    height = 0.9 + 0.3 * len(scores.labels)
    figure, axes = _figure(columns, -(-len(panels) // columns), 3.3 * columns, height * -(-len(panels) // columns))
    for number, (axis, (bench, metric, title)) in enumerate(zip(axes, panels, strict=False)):
        for row in (r for r in wanted if (r["bench"], r["metric"]) == (bench, metric)):
            place, colour = scores.labels.index(row["model"]), _colour(scores, row["model"])
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
            axis.plot([row["value"]], [place], "o", color=colour, markersize=6)
            if len(row["seeds"]) > 1:
                axis.plot(list(row["seeds"].values()), [place - 0.28] * len(row["seeds"]), "|", color=colour, alpha=0.7)
        axis.set_title(f"{bench}: {title}")
        names = scores.labels if number % columns == 0 else [""] * len(scores.labels)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(scores.labels) - 0.5, -0.6)
        axis.grid(axis="x", alpha=0.25)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def forgetting_kl(scores: Scores) -> Figure | None:
    """A point per checkpoint: KL(base || model) on the trained task's prompts, and what was forgotten."""
    points = association_points(scores, "base_model", "edit" if scores.edit_benches else "forgetting")
    if not points:
        return None
    try:
        bench = scores.bench("forgetting")
    except OnpolError:
        return None
    figure, (axis,) = _figure(1, 1, 5.2, 3.4)
    for label in dict.fromkeys(run.label for run, _, _ in points):
        own = [(kl, lost) for run, kl, lost in points if run.label == label]
        mark = _MARKS[scores.labels.index(label) % len(_MARKS)]
        axis.plot(*zip(*own, strict=True), mark, color=_colour(scores, label), label=label, markersize=6)
    axis.axhline(0, linewidth=0.8, color="#888888")
    axis.set_xlabel("KL(base‖model), nats per token")
    axis.set_ylabel(f"Pass@1 lost on {bench}")
    axis.legend()
    return figure


def cost_curves(scores: Scores) -> Figure | None:
    """Validation Pass@1, or without validation the reward of rollouts, against steps, seconds and tokens."""
    validated = [bench for run in scores.runs if run.train for bench in validation_benches(run.train.metrics)]
    name = f"validation/{validated[0]}/pass@1" if validated else REWARD
    title = f"Pass@1, {validated[0]}" if validated else "reward of own samples"
    courses = [(run, course(run.train.metrics, name)) for run in scores.runs if run.train]
    courses = [(run, path) for run, path in courses if len(path["score"])]
    if not courses:
        return None
    figure, axes = _figure(2, 2, 8, 5)
    named: set[str] = set()
    for run, path in courses:
        score = path["score"] if validated else smooth(path["score"], SMOOTHED)
        for axis, (cost, word) in zip(axes, COSTS.items(), strict=True):
            if cost == "step" or path[cost][-1] > 0:
                label = run.label if run.label not in named and axis is axes[0] else None
                dash = _DASHES[scores.labels.index(run.label) % 4]
                axis.plot(path[cost], score, dash, color=_colour(scores, run.label), label=label, linewidth=1.3)
            axis.set_xlabel(word)
            axis.set_ylabel(title)
            axis.xaxis.set_major_formatter(lambda value, _: amount(value))
        named.add(run.label)
    axes[0].legend()
    return figure


COSTS = {"step": "steps", "seconds": "seconds", "generated": "student tokens", "scored": "teacher tokens"}


def family_map(families: Rows) -> Figure | None:
    """Heat map: families by labels, Pass@1 written into each cell."""
    if not families:
        return None
    names = list(dict.fromkeys((row["bench"], row["family"]) for row in families))
    labels = list(dict.fromkeys(row["model"] for row in families))
    grid = np.full((len(names), len(labels)), np.nan)
    for row in families:
        grid[names.index((row["bench"], row["family"])), labels.index(row["model"])] = row["value"]
    figure, (axis,) = _figure(1, 1, 2.6 + 0.95 * len(labels), 1.0 + 0.27 * len(names))
    mesh = axis.pcolormesh(grid, cmap="cividis", vmin=0, vmax=1, edgecolors="none")
    several = len({bench for bench, _ in names}) > 1
    texts = [f"{bench}: {family}" if several else family for bench, family in names]
    axis.set_yticks(np.arange(len(names)) + 0.5, texts)
    axis.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=20, ha="right")
    axis.invert_yaxis()
    for (i, j), value in np.ndenumerate(grid):
        if value == value:
            shade = "#ffffff" if value < 0.55 else "#111111"
            axis.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8)
    figure.colorbar(mesh, ax=axis, label="Pass@1", fraction=0.05)
    return figure
