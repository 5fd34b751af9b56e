"""From graded lines to the numbers of one bench: value, 95% interval, outcomes, groups.

Owns the definitions of the metrics of one evaluation; comparing evaluations is `comparison`.
Let problem p have n_p answers of which c_p pass:
  `pass@k`              mean over problems of the unbiased estimate (`passk`);
  `avg@n`               mean pass rate where every problem has n > 1 answers (equals pass@1);
  `excess_levenshtein`  sum / count over passing answers that have a value; `added_cc` likewise.
Intervals: Wilson over problems for pass@1 with one answer a problem, else a bootstrap that resamples
problems. A problem without an answer (`--partial`) counts as one whose answers all fail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from onpol_cli.core.intervals import Interval, bootstrap_mean, bootstrap_ratio, wilson
from onpol_cli.core.types import Outcome, Problem
from onpol_cli.evaluation.passk import avg_at_k, pass_at_k, reported_k
from onpol_cli.evaluation.records import Row

SEED = 20240607
"""Of the bootstrap, so that the same lines always give the same interval."""
EDIT_METRICS = ("excess_levenshtein", "added_cc")
USABLE = "original passes here"
"""Name of the group of problems whose original passes in this environment."""
Metrics = dict[str, dict[str, float | None]]


def summarise(problems: Sequence[Problem], rows: Iterable[Row]) -> dict[str, Any]:
    """Numbers of one bench.

    Args:
        problems: all problems of the bench, answered or not: n.
        rows: its graded lines.

    Returns:
        `{"n", "answers", "metrics": {name: {"value", "low", "high"}}, "outcomes": {name: count},
        "groups": {kind: {name: {"n", "metrics"}}}}`. Values are None where nothing counts.
    """
    by_problem: dict[str, list[Row]] = {problem.problem_id: [] for problem in problems}
    for row in rows:
        by_problem[row["problem_id"]].append(row)
    answers = sum(map(len, by_problem.values()))
    return {
        "n": len(by_problem),
        "answers": answers,
        "metrics": metrics(list(by_problem.values())),
        "outcomes": outcomes(by_problem.values()),
        "groups": _groups(problems, by_problem),
    }


def outcomes(answers: Iterable[Sequence[Row]]) -> dict[str, int]:
    """Answers by outcome, every outcome named; a problem without answers is one `no_answer`."""
    counts = Counter({outcome.value: 0 for outcome in Outcome})
    for rows in answers:
        counts.update([row["outcome"] for row in rows] or [Outcome.NO_ANSWER.value])
    return dict(counts)


def metrics(answers: Sequence[Sequence[Row]]) -> Metrics:
    """All metrics that these lines have.

    Args:
        answers: the lines of each problem.
    """
    full = max(1, *map(len, answers)) if answers else 1
    counts = [(len(rows) or full, sum(_passed(row) for row in rows)) for rows in answers]
    found = {f"pass@{k}": _pass_metric(counts, k) for k in reported_k([n for n, _ in counts])}
    if full > 1 and all(n == full for n, _ in counts):
        found[f"avg@{full}"] = _avg_metric(answers, full)
    if any("excess_levenshtein" in row for rows in answers for row in rows):
        found |= {name: _edit_metric(answers, name) for name in EDIT_METRICS}
    return found


def _passed(row: Row) -> bool:
    return bool(row["outcome"] == Outcome.PASSED.value)


def _entry(value: float | None, interval: Interval) -> dict[str, float | None]:
    low, high = interval
    return {"value": value, "low": None if low != low else low, "high": None if high != high else high}


def _pass_metric(counts: Sequence[tuple[int, int]], k: int) -> dict[str, float | None]:
    values = [pass_at_k(n, c, k) for n, c in counts]
    single = k == 1 and all(n == 1 for n, _ in counts)
    interval = wilson(sum(c for _, c in counts), len(counts)) if single else bootstrap_mean(values, SEED)
    return _entry(sum(values) / len(values), interval)


def _avg_metric(answers: Sequence[Sequence[Row]], k: int) -> dict[str, float | None]:
    """Mean pass rate of `k` answers a problem."""
    values = [avg_at_k([_passed(row) for row in rows], k) if rows else 0.0 for rows in answers]
    return _entry(sum(values) / len(values), bootstrap_mean(values, SEED))


def _edit_metric(answers: Sequence[Sequence[Row]], name: str) -> dict[str, float | None]:
    per_problem = [[row[name] for row in rows if _passed(row) and row.get(name) is not None] for rows in answers]
    sums, counts = [float(sum(values)) for values in per_problem], [float(len(values)) for values in per_problem]
    value = sum(sums) / sum(counts) if sum(counts) else None
    return _entry(value, bootstrap_ratio(sums, counts, SEED))


Labels = Callable[[Problem], Iterable[str]]
_LABELS: dict[str, Labels] = {
    "family": lambda problem: problem.families,
    "difficulty": lambda problem: _label(problem, "difficulty"),
    "platform": lambda problem: _label(problem, "platform"),
    "erratum": lambda problem: [problem.meta["erratum"] or "not listed"] if "erratum" in problem.meta else [],
    "usable": lambda problem: _label(problem, "original_passes", {True: USABLE, False: "original fails here"}),
}


def _label(problem: Problem, name: str, words: Mapping[Any, str] | None = None) -> list[str]:
    value = problem.meta.get(name)
    return [] if value is None else [words[value] if words else str(value)]


def _groups(problems: Sequence[Problem], by_problem: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Metrics of subsets of problems: by family, difficulty, platform, erratum, and whether the original passes."""
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for problem in problems:
        for kind, labels in _LABELS.items():
            for label in dict.fromkeys(labels(problem)):
                members[kind][label].append(problem.problem_id)
    return {
        kind: {
            label: {"n": len(ids), "metrics": metrics([by_problem[problem_id] for problem_id in ids])}
            for label, ids in sorted(labels.items())
        }
        for kind, labels in members.items()
    }
