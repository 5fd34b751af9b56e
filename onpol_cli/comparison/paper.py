"""The published tables fed in as counts: which of their gaps the data resolves.

Source: the two write-ups of the Minimal Code Edit experiment (Pass@1 on 400 tasks, LiveCodeBench v6 on
175 problems, one sample a problem). Owns those figures and the files of `results/paper/`.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from onpol_cli.comparison.counts import bounded_mean_gap, count_gap, counts_behind, interval
from onpol_cli.core.files import write_atomic

EDIT_N, LCB_N = 400, 175
BASE_LCB = 57


@dataclass(frozen=True)
class Row:
    """One published row; rates as printed, `lcb` as a count."""

    model: str
    pass1: float
    lev: float
    cc: float
    lcb: int | None


STUDENTS = (
    Row("SFT tutor", 0.775, 0.450, 0.450, 50),
    Row("RL tutor", 0.792, 0.063, 0.206, 56),
    Row("OPD from SFT tutor", 0.800, 0.059, 0.206, 52),
    Row("OPD from RL tutor", 0.787, 0.055, 0.228, 55),
)
"""The later post, out-of-domain corruptions."""

METHODS = (
    Row("base 0-shot", 0.735, 0.169, 0.731, BASE_LCB),
    Row("SFT", 0.458, -0.008, 0.006, BASE_LCB - 26),
    Row("rSFT", 0.780, 0.107, 0.501, BASE_LCB - 12),
    Row("DPO", 0.787, 0.092, 0.348, BASE_LCB - 8),
    Row("RL", 0.782, 0.050, 0.185, BASE_LCB + 1),
)
"""The earlier post, out-of-domain corruptions; LCB counts from the printed change of 57/175."""

LORA_LCB_CHANGE = {1: -0.022, 8: -0.022, 16: -0.005, 32: -0.011, 64: +0.001}
"""RL with LoRA by rank: printed LiveCodeBench change."""


def paper_counts() -> list[dict[str, Any]]:
    """One record per pair of rows and column: gap, both p-values, verdict, n needed."""
    records: list[dict[str, Any]] = []
    for post, rows in (("students", STUDENTS), ("methods", METHODS)):
        for left, right in combinations(rows, 2):
            a, b = _passes(left.pass1), _passes(right.pass1)
            records.append(_counts(post, "Pass@1", left.model, right.model, a, b, EDIT_N))
            if left.lcb is not None and right.lcb is not None:
                records.append(_counts(post, "LiveCodeBench v6", left.model, right.model, left.lcb, right.lcb, LCB_N))
            records.append(_levenshtein(post, left, right, a, b))
    return records


def paper_scores() -> list[dict[str, Any]]:
    """Every published rate with its count, n and 95% interval."""
    scores = []
    for post, rows in (("students", STUDENTS), ("methods", METHODS)):
        for row in rows:
            for column, count, n in (("Pass@1", _passes(row.pass1), EDIT_N), ("LiveCodeBench v6", row.lcb, LCB_N)):
                if count is not None:
                    low, high = interval(count, n)
                    scores.append(
                        {"post": post, "model": row.model, "column": column, "count": count, "n": n,
                         "value": count / n, "low": low, "high": high}
                    )  # fmt: skip
    return scores


def write_paper(out: Path) -> list[Path]:
    """Write `results/paper/`: paper.md, paper.csv, paper.json. Returns the files."""
    scores, gaps = paper_scores(), paper_counts()
    texts = {
        "paper.json": json.dumps({"scores": scores, "differences": gaps, "lora": lora_counts()}, indent=1) + "\n",
        "paper.csv": _csv(gaps),
        "paper.md": _markdown(scores, gaps),
    }
    for name, text in texts.items():
        write_atomic(out / name, text)
    return [out / name for name in texts]


def lora_counts() -> dict[str, list[int]]:
    """Whole problems of 175 behind each printed LoRA change; an empty list: it is not one run's count."""
    return {f"rank {rank}": counts_behind(change, LCB_N) for rank, change in LORA_LCB_CHANGE.items()}


def _passes(rate: float) -> int:
    found = counts_behind(rate, EDIT_N)
    assert found, f"{rate} is no count of {EDIT_N}"
    return found[0]


def _counts(post: str, column: str, left: str, right: str, a: int, b: int, n: int) -> dict[str, Any]:
    gap = count_gap(a, b, n)
    return {
        "post": post, "column": column, "left": left, "right": right, "left_value": a / n, "right_value": b / n,
        "difference": gap.gap, "left_count": a, "right_count": b, "n": n,
        "p_most_favourable_overlap": gap.p_favourable, "p_independent": gap.p_independent, "verdict": gap.verdict,
        "n_needed_most_favourable": gap.n_favourable, "n_needed_independent": gap.n_independent,
    }  # fmt: skip


def _levenshtein(post: str, left: Row, right: Row, a: int, b: int) -> dict[str, Any]:
    p = bounded_mean_gap(left.lev, a, right.lev, b)
    return {
        "post": post, "column": "Norm. Lev.", "left": left.model, "right": right.model, "left_value": left.lev,
        "right_value": right.lev, "difference": left.lev - right.lev, "left_count": None, "right_count": None,
        "n": None, "p_most_favourable_overlap": None, "p_independent": p,
        "verdict": "resolved" if p < 0.05 else "spread not published",
        "n_needed_most_favourable": None, "n_needed_independent": None,
    }  # fmt: skip


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    return buffer.getvalue()


_INTRODUCTION = """# What the published tables resolve

Two models were scored on the same problems, one sample each, and only totals are printed. Without the
pairing a difference has two readings. *Most favourable overlap*: every problem on which the two differ
favours the better one (exact McNemar on the bare difference). *Independence*: as if each model had met
its own problems (two-proportion z test). A gap is **resolved** if both give p < 0.05, **not resolved** if
neither does; otherwise it **depends on the overlap**, which only per-problem records can tell. p-values
are for each pair alone, without a correction for the number of pairs. *n needed*: problems for 80% power
at the same gap, under either reading.

For Norm. Lev. no spread is printed. Its values lie in [-1, 1], which bounds the variance; p is the largest
that any spread allows. A gap that is small by this bound is *not* shown to be absent. Added CC has no
bound and cannot be judged from the tables. Counts of Pass@1 are the whole numbers of 400 behind the
printed rates; LiveCodeBench counts of the earlier post follow from the printed change of 57/175.

Made by `onpol_cli.comparison.paper.write_paper`.
"""

_TITLES = {"students": "Tutors and students (later post)", "methods": "Methods against the base (earlier post)"}


def _markdown(scores: list[dict[str, Any]], gaps: list[dict[str, Any]]) -> str:
    parts = [_INTRODUCTION]
    for post, title in _TITLES.items():
        parts += [f"\n## {title}\n\n### Scores with 95% intervals (Wilson)\n", _SCORE_HEAD]
        parts += [_score_line(one) for one in scores if one["post"] == post]
        parts += ["\n### Differences\n", _GAP_HEAD]
        parts += [_line(gap) for gap in sorted(gaps, key=lambda g: str(g["column"])) if gap["post"] == post]
    parts.append(_LORA_HEAD)
    for rank, change in LORA_LCB_CHANGE.items():
        counts = counts_behind(change, LCB_N)
        told = f"{counts[0]:+d} problems" if counts else "no whole number of problems: not the change of one run on 175"
        parts.append(f"- rank {rank}: {change:+.3f} = {told}")
    return "\n".join(parts) + "\n"


_SCORE_HEAD = "| model | column | score | 95% interval |\n|---|---|---|---|"
_GAP_HEAD = (
    "| column | left | right | difference | p, most favourable overlap | p, independence | verdict "
    "| n needed (favourable / independent) |\n|---|---|---|---|---|---|---|---|"
)
_LORA_HEAD = (
    "\n## LoRA ranks (earlier post)\n\n"
    "Printed LiveCodeBench change, and the whole problems of 175 that round or cut to it:\n"
)


def _score_line(one: dict[str, Any]) -> str:
    score = f"{one['value']:.3f} ({one['count']}/{one['n']})"
    return f"| {one['model']} | {one['column']} | {score} | {one['low']:.3f} to {one['high']:.3f} |"


def _line(gap: dict[str, Any]) -> str:
    counts = f" ({gap['left_count']} vs {gap['right_count']} of {gap['n']})" if gap["n"] else ""
    favourable = _p(gap["p_most_favourable_overlap"])
    needs = f"{gap['n_needed_most_favourable'] or '-'} / {gap['n_needed_independent'] or '-'}" if gap["n"] else "-"
    bound = "at most " if gap["n"] is None else ""
    return (
        f"| {gap['column']} | {gap['left']} | {gap['right']} | {gap['difference']:+.3f}{counts} | {favourable} "
        f"| {bound}{_p(gap['p_independent'])} | {gap['verdict']} | {needs} |"
    )


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"
