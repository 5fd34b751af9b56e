"""Rows of numbers as tables of text: rounding, columns, order.

Owns what a reader sees in the terminal, Markdown, LaTeX and the report; `render` owns the formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onpol_cli.comparison.forgetting import Forgetting
from onpol_cli.comparison.ledger import PHASES
from onpol_cli.comparison.scores import Scores
from onpol_cli.comparison.tables import Rows

SHOWN_NAMES = 6
"""Lost or won problems named in a cell; all of them are in the JSON."""


@dataclass(frozen=True)
class Frame:
    """A table of text.

    Attributes:
        name: file-safe word, the table's LaTeX label.
        notes: lines printed under it.
        brief: shown in the terminal, too.
        minor: numbers of rows that only detail the one above (single seeds).
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()
    brief: bool = False
    minor: frozenset[int] = field(default_factory=frozenset)


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Fixed digits; an en dash where there is no number."""
    if value is None or value != value:
        return "–"
    value = round(value, digits) + 0.0  # + 0.0 turns a negative zero into zero
    return f"{value:{'+' if sign else ''}.{digits}f}"


def ranged(row: dict[str, Any], *, sign: bool = False, key: str = "value") -> str:
    """`0.775 [0.732, 0.813]`, rounded together."""
    if row.get(key) is None or row[key] != row[key]:
        return "–"
    if row.get("low") is None:
        return number(row[key], sign=sign)
    low, high = number(row["low"], sign=sign), number(row["high"], sign=sign)
    return f"{number(row[key], sign=sign)} [{low}, {high}]"


def p_value(p: float | None) -> str:
    """Three digits, `< 0.001` below."""
    return "–" if p is None else "<\u00a00.001" if p < 0.001 else f"{p:.3f}"


def amount(value: float | None) -> str:
    """Counts with k, M, G."""
    if value is None or value != value:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def paper_frames(scores: Scores, rows: Rows) -> list[Frame]:
    """The paper's table once per edit bench and temperature: its metrics, then what was forgotten.

    Without edit benches, one table per temperature with a column per bench.
    """
    index = {(r["bench"], r["temperature"], r["metric"], r["model"]): r for r in rows}
    shown = scores.edit_benches or [""]
    frames = []
    for heat in scores.temperatures:
        for bench in shown:
            own = [(bench, m.name, m.title) for m in scores.metrics(bench)] if bench else []
            columns = [c for c in own if c[1] != "exact_reversal"]
            columns += [(other, "pass@1", other) for other in scores.other_benches]
            columns += [c for c in own if c[1] == "exact_reversal"]
            cells = [(b, heat, m) for b, m, _ in columns]
            frames.append(_paper_frame(scores, index, bench, heat, [c[2] for c in columns], cells))
    return frames


def _paper_frame(
    scores: Scores, index: dict[Any, dict[str, Any]], bench: str, heat: float, titles: list[str], cells: list[Any]
) -> Frame:
    body: list[list[str]] = []
    minor = set()
    for label in scores.labels:
        found = [index.get((*cell, label)) for cell in cells]
        body.append([label, *(f"{ranged(row)} n={row['n']}" if row else "–" for row in found)])
        seeds = sorted({seed for row in found if row for seed in row["seeds"]})
        for seed in seeds if len(seeds) > 1 else []:
            minor.add(len(body))
            body.append([f"  seed {seed}", *(number(row["seeds"].get(seed)) if row else "–" for row in found)])
    headline = ", headline" if heat == scores.headline else ""
    name = f"scores-{bench or 'all'}-t{heat:g}"
    title = f"{bench or 'Scores'} at temperature {heat:g}{headline}"
    notes = ["Mean with 95% interval; n: problems that count. Seeds are listed below their mean."]
    if bench in scores.edit_benches:
        notes.append(
            "Norm. Lev.: edit beyond the true reversal, Added CC: complexity beyond the original, both over passing "
            "answers, lower is better. Exact: the answer is the original."
        )
    return Frame(name, title, ("model", *titles), body, tuple(notes), heat == scores.headline, frozenset(minor))


def usable_frames(rows: Rows) -> list[Frame]:
    """Per edit bench, the scores on those problems whose original passes where the evaluation ran."""
    found = []
    for bench in dict.fromkeys(row["bench"] for row in rows):
        own = [row for row in rows if row["bench"] == bench]
        titles = dict.fromkeys(row["title"] for row in own)
        cells = {(row["model"], row["title"]): f"{ranged(row)} n={row['n']}" for row in own}
        body = [
            [model, *(cells.get((model, title), "–") for title in titles)]
            for model in dict.fromkeys(row["model"] for row in own)
        ]
        title = f"{bench}: the {own[0]['problems']} problems whose original passes here"
        found.append(Frame(f"usable-{bench}", title, ("model", *titles), body, (), True))
    return found


HEADLINE = ("pass@1", "excess_levenshtein")
SCREEN = 40
"""Rows of differences above which a terminal shows those of the `HEADLINE` metrics only."""


def brief_rows(scores: Scores, rows: Rows) -> Rows:
    """Differences against the base and between a student and its tutor."""
    tutors = {(run.label, run.tutor_label) for run in scores.runs if run.tutor_label}
    return [r for r in rows if r["right"] == scores.base or _related(r, tutors)]


def headline_rows(rows: Rows) -> tuple[Rows, str]:
    """Those of `rows` that a terminal has room for, and the note that says what was left out."""
    if len(rows) <= SCREEN:
        return rows, ""
    return [r for r in rows if r["metric"] in HEADLINE], "Other metrics and pairs: --out FOLDER, --html FILE, --json."


def difference_frame(rows: Rows, *, brief: bool, note: str = "") -> Frame:
    """Paired differences: all, or (`brief`) those of `brief_rows`, with a `note`."""
    several = any(len(r["seeds"]) > 1 for r in rows)
    columns = ["bench", "metric", "left − right", "difference", "p", "p (Holm)", "won/lost", "n", "more data"]
    if several:
        columns.insert(6, "paired t over seeds")
    body = []
    for r in rows:
        line = [
            r["bench"], r["title"], f"{r['left']} − {r['right']}", ranged(r, sign=True), p_value(r["p"]),
            p_value(r["p_holm"]) + ("*" if r["resolved"] else ""), f"{r['won']}/{r['lost']}", str(r["n"]),
            _still_needed(r),
        ]  # fmt: skip
        if several:
            line.insert(6, _seeds_cell(r))
        body.append(line)
    tests = sorted({r["test"] for r in rows})
    notes = (
        f"Paired per problem; 95% intervals; tests: {', '.join(tests)}. Holm per bench over all pairs and metrics; "
        "* resolved at 5% after it. More data: problems (or seeds) for 80% power at this gap, before Holm.",
    )
    if brief:
        title = "Paired differences: against the base, and student against tutor"
        return Frame("differences-brief", title, tuple(columns), body, (*notes, *filter(None, [note])), brief)
    return Frame("differences", "Paired differences", tuple(columns), body, notes)


def _seeds_cell(row: dict[str, Any]) -> str:
    if row["p_seeds"] is None:
        return "–"
    low, high = number(row["low_seeds"], sign=True), number(row["high_seeds"], sign=True)
    return f"p {p_value(row['p_seeds'])} [{low}, {high}]"


def _related(row: dict[str, Any], tutors: set[tuple[str, str]]) -> bool:
    return (row["left"], row["right"]) in tutors or (row["right"], row["left"]) in tutors


def to_resolve(row: dict[str, Any], unit: str = "problems") -> str:
    """`1,234 problems or 9 seeds` (`and` where neither alone would do); a dash where more data do not help."""
    problems, seeds, answers = row["needed_problems"], row["needed_seeds"], row["needed_answers"]
    parts = [f"{problems:,} {unit}"] if problems else []
    parts += [f"{answers:,} answers a problem"] if answers else []
    parts += [f"{seeds:,} seeds"] if seeds else []
    return (" and " if row["needed_together"] else " or ").join(parts) or "–"


def _still_needed(row: dict[str, Any]) -> str:
    if row["resolved"]:
        return ""
    return "resolved but for Holm" if row["p"] < 0.05 else to_resolve(row)


def claim_frame(rows: Rows, roles: str = "") -> Frame:
    """Claims and statements with their verdicts; `roles` says which benches are meant."""
    body = []
    for r in rows:
        unit = "methods" if r["kind"] == "association" else "problems"
        wanted = to_resolve(r, unit) if r["verdict"] == "unresolved" else ""
        effect = ranged(r, sign=True, key="effect")
        notes = [r["note"]] + ([f"to resolve: {wanted}"] if wanted not in ("", "–") else [])
        body.append(
            [r["claim"], r["statement"], r["verdict"], effect, p_value(r["p"]), p_value(r["p_holm"]),
             str(r["n"] or "–"), str(r["seeds"] or "–"), "; ".join(filter(None, notes))]
        )  # fmt: skip
    columns = ("claim", "statement", "verdict", "effect", "p", "p (Holm)", "n", "seeds", "note")
    foot = (
        "Effect: left − right with its 95% interval, which decides (equivalence: two one-sided tests at 5%); "
        f"not corrected for their number, Holm stands beside.{f' Benches: {roles}.' if roles else ''}",
    )
    return Frame("claims", "Claims", columns, body, foot, True)


def forgetting_frame(found: Sequence[Forgetting]) -> Frame:
    """Change against the base with the problems behind it."""
    body = []
    for item in found:
        e = item.change.estimate
        body.append(
            [item.label, item.bench, ranged({"value": e.value, "low": e.low, "high": e.high}, sign=True),
             p_value(item.change.p), str(e.n), _names(item.lost), _names(item.won)]
        )  # fmt: skip
    columns = ("model", "bench", "change of Pass@1", "p", "n", "lost", "won")
    return Frame("forgetting", "Forgetting: change against the base", columns, body)


def _names(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    listed = ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)}: {listed}" if names else "0"


def divergence_frame(rows: Rows) -> Frame:
    """KL both ways per label, a pair of columns per bench."""
    benches = list(dict.fromkeys(r["prompts"] for r in rows))
    body = []
    for label in dict.fromkeys(r["model"] for r in rows if r["kl_base_model"]):  # the base is at 0
        own = {bench: [r for r in rows if r["model"] == label and r["prompts"] == bench] for bench in benches}
        cells = [over_seeds([r[key] for r in own[b]], 4) for b in benches for key in ("kl_base_model", "kl_model_base")]
        body.append([label, *cells])
    titles = [f"{name}, {bench}" for bench in benches for name in ("KL(base‖model)", "KL(model‖base)")]
    notes = (f"On held-out prompts of each bench. {OVER_SEEDS}",)
    return Frame("divergence", "Distance from the base, nats per token", ("model", *titles), body, notes)


OVER_SEEDS = "Mean over seeds, lowest to highest seed in parentheses; every seed is in the CSV."


def over_seeds(values: Sequence[float | None], digits: int = 3) -> str:
    """`0.146 (0.141–0.152)`, a plain number for one seed."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, low, high = (number(value, digits) for value in (sum(known) / len(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low}–{high})"


def update_frame(rows: Rows) -> Frame:
    """Where each label's update fell, one row per bench whose prompts were used."""
    body = []
    for label, bench in dict.fromkeys((r["model"], r["prompts"]) for r in rows):
        own = [r for r in rows if (r["model"], r["prompts"]) == (label, bench)]
        cells = [over_seeds([r[name] for r in own], digits) for name, (_, digits) in UPDATE.items()]
        n = next((f" n={r['forced_n']:.0f}" for r in own if r.get("forced_n")), "")
        cells[-1] += n if cells[-1] != "–" else ""
        body.append([label, bench or "–", *cells])
    columns = ("model", "prompts of", *(title for title, _ in UPDATE.values()))
    notes = (
        "Tokens are the base's own samples; change: |log p(model) − log p(base)|, nats. Trained tokens: the data "
        "set's; for methods that train on their own samples, the checkpoint's. Forced: an answer goes on after the "
        f"base's likeliest wrong token a third of the way into the reference. {OVER_SEEDS}",
    )
    return Frame("update", "Where the update falls", columns, body, notes)


UPDATE = {
    "share_changed": ("parameters changed", 3),
    "relative_norm": ("size of the change / base", 4),
    "low_prob_share": ("trained tokens under 1% in the base", 4),
    "mean_change": ("change per token", 3),
    "gini": ("Gini of the change", 3),
    "spearman_surprisal": ("its rank correlation with surprisal", 3),
    "spearman_entropy": ("… with entropy", 3),
    "forced_pass": ("passes after a forced wrong token", 3),
}
"""Columns: entry of update.json, heading, digits."""


def _mean(rows: Rows, key: str) -> str:
    known = [row[key] for row in rows if row[key] is not None]
    return number(sum(known) / len(known)) if known else "–"


def curve_frame(rows: Rows) -> Frame:
    """The shape of training on own samples, by label."""
    body = []
    for label in dict.fromkeys(r["model"] for r in rows):
        own = [r for r in rows if r["model"] == label]
        ends = [f"{_mean(own, f'{name}_first')} → {_mean(own, f'{name}_last')}" for name in ("entropy", "reward")]
        shape = [over_seeds([r["entropy_half_step"] for r in own], 1), over_seeds([r["reward_jump"] for r in own])]
        body.append([label, f"{own[0]['steps']}", *shape, number(own[0]["even_rise"]), *ends])
    columns = (
        "model", "steps", "steps to half of the entropy fall", "largest share of the reward rise in 5 steps",
        "if it rose evenly", "entropy, nats", "reward",
    )  # fmt: skip
    notes = (f"First step → mean of the last tenth. {OVER_SEEDS}",)
    return Frame("curves", "Training curves", columns, body, notes)


def cost_frame(rows: Rows) -> Frame:
    """The ledger per label (means over seeds)."""
    body = [
        [r["model"], str(r["runs"]), amount(r["steps"]), amount(r["tokens_generated"]), amount(r["tokens_scored"]),
         amount(r["tokens_trained"]), *(amount(r[f"seconds_{phase}"]) for phase in PHASES),
         amount(r["seconds_wall"]), amount(r["peak_mb"]), amount(r["gpu_seconds"])]
        for r in rows
    ]  # fmt: skip
    columns = (
        "model", "runs", "steps", "generated", "scored", "trained", "generate s", "grade s", "score s", "train s",
        "sync s", "wall s", "peak MB", "GPU s",
    )  # fmt: skip
    notes = ("Means over seeds. generated: student tokens; scored: teacher tokens; trained: tokens with a gradient.",)
    return _without_empty(Frame("costs", "What it cost", columns, body, notes, True))


def _without_empty(frame: Frame) -> Frame:
    """`frame` without columns that hold nothing but dashes."""
    keep = [i for i in range(len(frame.columns)) if any(row[i] != "–" for row in frame.rows)]
    columns, rows = tuple(frame.columns[i] for i in keep), [[row[i] for i in keep] for row in frame.rows]
    return replace(frame, columns=columns, rows=rows)


REACH = ("step", "seconds", "generated", "scored")


def reach_frame(rows: Rows) -> Frame | None:
    """What it took each student to reach its tutor's score; None without students that can be compared."""
    students = [r for r in rows if r["reached_tutor"] is not None]
    body = [
        [r["model"], r["to_tutor_measure"], number(r["to_tutor_goal"]), number(r["to_tutor_end"]), r["reached_tutor"],
         *(amount(r[f"to_tutor_{name}"]) for name in REACH)]
        for r in students
    ]  # fmt: skip
    columns = (
        "model", "score", "tutor's", "student's at the end", "seeds that reached it", "step", "seconds",
        "student tokens", "teacher tokens",
    )  # fmt: skip
    notes = (
        "Costs until it was first reached, means over the seeds that did. Validation Pass@1: both sides' validation; "
        "reward: the student's own rollouts (mean of 5 steps) against the tutor's answers to the bench of the task.",
    )
    return Frame("reach", "Cost of reaching the tutor's score", columns, body, notes) if students else None


def outcome_frame(rows: Rows) -> Frame:
    """Answers by outcome."""
    kinds = ("passed", "failed", "timeout", "no_answer", "truncated", "error")
    body = [
        [r["model"], r["bench"], f"{r['temperature']:g}", str(r["answers"]), *(str(r[kind]) for kind in kinds)]
        for r in rows
    ]  # fmt: skip
    columns = ("model", "bench", "T", "answers", *(kind.replace("_", " ") for kind in kinds))
    return Frame("outcomes", "How answers ended", columns, body)


def family_frame(rows: Rows) -> Frame:
    """Pass rate by corruption family, a column per label."""
    labels = list(dict.fromkeys(r["model"] for r in rows))
    keys = list(dict.fromkeys((r["bench"], r["family"]) for r in rows))
    index = {(r["bench"], r["family"], r["model"]): r for r in rows}
    body = []
    for bench, family in keys:
        cells = [index.get((bench, family, label)) for label in labels]
        n = next(str(c["n"]) for c in cells if c)
        body.append([bench, family, n, *(ranged(c) if c else "–" for c in cells)])
    return Frame("families", "Pass@1 by corruption family", ("bench", "family", "problems", *labels), body)
