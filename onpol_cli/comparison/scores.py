"""Metrics as per-problem sums, so that one resampling code serves every column of the table.

Each metric is a ratio `sum_p num[p] / sum_p den[p]` over problems p:
`pass@1` has num = share of the problem's answers that pass, den = 1; the averages over passing answers
(`excess_levenshtein`, `added_cc`) have num = sum over the problem's passing answers, den = their count.
Owns metric definitions and the arrays; intervals and tests live in `estimate` and `significance`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onpol_cli.comparison.records import Answer, EvalRun
from onpol_cli.core.errors import OnpolError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One column of the table.

    Attributes:
        name: word used in claims and JSON.
        title: heading in tables (the paper's).
        better: +1 if higher is better, -1 if lower is.
        margin: difference that is held to be of no consequence, in the metric's unit.
        value: an answer's contribution, None to leave it out of numerator and denominator.
        proportion: values are 0 or 1 for every answer.
    """

    name: str
    title: str
    better: int
    margin: float
    value: Callable[[Answer], float | None]
    proportion: bool = False


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pass@1", "Pass@1", +1, 0.03, lambda a: float(a.passed), proportion=True),
        Metric("excess_levenshtein", "Norm. Lev.", -1, 0.02, lambda a: a.excess if a.passed else None),
        Metric("added_cc", "Added CC", -1, 0.1, lambda a: a.added_cc if a.passed else None),
        Metric(
            "exact_reversal", "Exact", +1, 0.03,
            lambda a: None if a.exact_reversal is None else float(a.exact_reversal), proportion=True,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One metric of one bench at one temperature, for every evaluated checkpoint.

    Attributes:
        problems: [P] names, in the same order for all.
        keys: [R] (label, seed) of each row.
        num, den: [R, P] per-problem sums (see the module's formula).
        samples: answers per problem (the largest number met).
    """

    metric: Metric
    bench: str
    temperature: float
    problems: tuple[str, ...]
    keys: tuple[tuple[str, int], ...]
    num: Array
    den: Array
    samples: int
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Resampled scores and finished pairs: claims, tables and forgetting ask for the same ones."""

    def labels(self) -> list[str]:
        """Labels in order of first appearance."""
        return list(dict.fromkeys(label for label, _ in self.keys))

    def seeds(self, label: str) -> list[int]:
        """Seeds at hand for `label`."""
        return [seed for name, seed in self.keys if name == label]

    def rows(self, label: str) -> tuple[Array, Array]:
        """num and den of `label`: [S, P] each."""
        pick = [i for i, (name, _) in enumerate(self.keys) if name == label]
        return self.num[pick], self.den[pick]

    def counted(self, label: str) -> int:
        """n of the cell: problems that contribute to it, per seed (the smallest over seeds)."""
        _, den = self.rows(label)
        return int((den > 0).sum(axis=1).min()) if len(den) else 0

    def paired(self, left: str, right: str) -> Column:
        """The same column restricted to problems that every seed of both labels answered.

        Only matters under --force; with equal data nothing is dropped. For averages over passing
        answers a problem without a passing answer stays in: its weight in the ratio is 0.
        """
        if not self.metric.proportion:
            return self
        pick = [i for i, (name, _) in enumerate(self.keys) if name in (left, right)]
        return self._part(np.asarray((self.den[pick] > 0).all(axis=0)))

    def only(self, names: Container[str]) -> Column:
        """The same column restricted to the named problems."""
        return self._part(np.array([name in names for name in self.problems]))

    def _part(self, keep: npt.NDArray[np.bool_]) -> Column:
        if keep.all():
            return self
        names = tuple(self.problems[i] for i in np.flatnonzero(keep))
        return replace(self, problems=names, num=self.num[:, keep], den=self.den[:, keep], cache={})


class Scores:
    """All columns of a set of evaluation runs, built on demand and kept."""

    def __init__(self, runs: Sequence[EvalRun]) -> None:
        labels = list(dict.fromkeys([r.label for r in runs if r.is_base] + [r.label for r in runs]))
        self.labels = labels
        """Labels, base first, then in order of first appearance."""
        # Seeds in order, whatever order the runs were named in: pairing per seed relies on it.
        self.runs = sorted(runs, key=lambda run: (labels.index(run.label), run.seed))
        self._columns: dict[tuple[str, float, str], Column | None] = {}

    @cached_property
    def benches(self) -> list[str]:
        """Benches in order of first appearance."""
        return list(dict.fromkeys(answer.bench for run in self.runs for answer in run.answers))

    @cached_property
    def temperatures(self) -> list[float]:
        """Sampling temperatures, the headline (first of the evaluation settings) in front."""
        found = list(dict.fromkeys(answer.temperature for run in self.runs for answer in run.answers))
        wanted = (self.runs[0].manifest.get("eval_settings") or {}).get("temperatures") or []
        front = [float(t) for t in wanted if float(t) in found]
        return front + [t for t in found if t not in front]

    @property
    def headline(self) -> float:
        """The temperature shown first and used by claims."""
        return self.temperatures[0]

    @cached_property
    def edit_benches(self) -> list[str]:
        """Benches whose answers carry an edit distance."""
        measured = {answer.bench for run in self.runs for answer in run.answers if answer.excess is not None}
        return [bench for bench in self.benches if bench in measured]

    @cached_property
    def other_benches(self) -> list[str]:
        """Benches that measure what was not trained: forgetting is read off them."""
        return [bench for bench in self.benches if bench not in self.edit_benches]

    @cached_property
    def base(self) -> str | None:
        """Label of the untrained model, None if it was not evaluated."""
        return next((run.label for run in self.runs if run.is_base), None)

    def metrics(self, bench: str) -> list[Metric]:
        """Metrics that have values on `bench`."""
        wanted = list(METRICS.values()) if bench in self.edit_benches else [METRICS["pass@1"]]
        return [metric for metric in wanted if self.column(bench, self.headline, metric.name) is not None]

    def column(self, bench: str, temperature: float, metric: str) -> Column | None:
        """The column, None when no answer has a value for it."""
        key = (bench, temperature, metric)
        if key not in self._columns:
            self._columns[key] = _build(self, bench, temperature, METRICS[metric])
        return self._columns[key]

    def usable(self, bench: str) -> frozenset[str] | None:
        """Problems whose original passed where each run was evaluated; None unless every run knows it of every one."""
        found: set[str] | None = None
        for run in self.runs:
            rows = [row for (name, _), row in run.problems.items() if name == bench]
            if not all("original_passes" in row for row in rows):
                return None
            if rows:
                passing = {str(row["problem_id"]) for row in rows if row["original_passes"]}
                found = passing if found is None else found & passing
        return None if found is None else frozenset(found)

    def bench(self, wanted: str) -> str:
        """A bench by name, or by role: `edit` is the first edit bench, `forgetting` the first other one.

        Raises:
            OnpolError: no evaluated bench answers to `wanted`.
        """
        roles = {"edit": self.edit_benches, "forgetting": self.other_benches}
        found = roles.get(wanted, [wanted] if wanted in self.benches else [])
        if not found:
            known = ", ".join(self.benches)
            raise OnpolError(f"No bench {wanted!r} among the runs. Evaluated: {known}; roles: edit, forgetting.")
        return found[0]


def _build(scores: Scores, bench: str, temperature: float, metric: Metric) -> Column | None:
    chosen = [
        (run, [a for a in run.answers if a.bench == bench and a.temperature == temperature]) for run in scores.runs
    ]
    order = [item for item in chosen if item[1]]
    answered = dict.fromkeys(answer.problem_id for _, answers in order for answer in answers)
    asked = [{name: None for of, name in run.problems if of == bench} for run, _ in order]
    names = tuple(answered | {name: None for listed in asked for name in listed})
    place = {name: i for i, name in enumerate(names)}
    num, den = np.zeros((len(order), len(names))), np.zeros((len(order), len(names)))
    for row, (_, answers) in enumerate(order):
        for answer in answers:
            value = metric.value(answer)
            if value is not None:
                num[row, place[answer.problem_id]] += value
                den[row, place[answer.problem_id]] += 1
    if not den.any():
        return None
    if metric.proportion:  # a problem without an answer, its prompt too long say, is not solved
        for row, (_, answers) in enumerate(order):
            unanswered = asked[row].keys() - {answer.problem_id for answer in answers}
            den[row, [place[name] for name in unanswered]] = 1
    samples = max(answer.sample for _, answers in order for answer in answers) + 1
    if metric.proportion:
        num, den = np.divide(num, den, out=np.zeros_like(num), where=den > 0), (den > 0).astype(float)
    keys = tuple((run.label, run.seed) for run, _ in order)
    return Column(metric, bench, temperature, names, keys, num, den, samples)
