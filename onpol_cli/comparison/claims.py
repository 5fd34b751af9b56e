"""Claims as data: the schema of `conf/claims/*.yaml`, its validation, and the verdict's shape.

A claim is a sentence and one or more statements; each statement is a comparison that data can decide.
Owns reading and checking; `judge` decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from onpol_cli.comparison.scores import METRICS
from onpol_cli.core.errors import OnpolError


class Kind(StrEnum):
    """What a statement says of left and right; "better" follows the metric's direction."""

    superiority = "superiority"
    """left is better by more than the margin (default 0)."""
    non_inferiority = "non-inferiority"
    """left is worse by less than the margin."""
    equivalence = "equivalence"
    """they differ by less than the margin (two one-sided tests)."""
    difference = "difference"
    """they differ, either way."""
    curve = "curve"
    """a training curve's shape: left more abrupt than right."""
    association = "association"
    """forgetting rises with `metric` over the means of methods (Spearman)."""


class Verdict(StrEnum):
    """What the data say."""

    supported = "supported"
    contradicted = "contradicted"
    unresolved = "unresolved"
    premise_not_met = "premise not met"


CURVES = {"entropy-half-step": -1, "reward-jump": +1}
"""Curve metrics and the direction that means "more abrupt"."""
ASSOCIATIONS = ("kl/base_model", "kl/model_base")
FORGETTING = "forgetting"
"""Metric name: Pass@1 on the bench that was not trained (the base's score cancels in differences)."""
_PAIRED = (Kind.superiority, Kind.non_inferiority, Kind.equivalence, Kind.difference)
_KEYS = ("kind", "metric", "bench", "left", "right", "margin", "premise")


@dataclass(frozen=True)
class Statement:
    """One decidable comparison.

    Attributes:
        metric: a column (`pass@1`, `excess_levenshtein`, `added_cc`, `exact_reversal`), `forgetting`,
            a curve, or what forgetting is associated with.
        bench: bench name or role (`edit`, `forgetting`).
        left, right: labels of the runs compared; empty for an association.
        margin: in the metric's unit.
        premise: must be supported, else the verdict is "premise not met".
    """

    kind: Kind
    metric: str
    bench: str
    left: str = ""
    right: str = ""
    margin: float = 0.0
    premise: Statement | None = None

    @property
    def better(self) -> int:
        """+1 if a higher value is better for left, -1 if a lower one is."""
        if self.kind is Kind.curve:
            return CURVES[self.metric]
        return METRICS[column_of(self.metric)].better

    def sentence(self) -> str:
        """The statement in words."""
        margin = f" (margin {self.margin:g})" if self.margin else ""
        if self.kind is Kind.association:
            return f"forgetting rises with {_KL_WORDS[self.metric]} on {self.bench} prompts"
        if self.kind is Kind.curve:
            return f"{self.left} {_CURVE_WORDS[self.metric]} {self.right}"
        if self.metric == FORGETTING:
            return f"{self.left} {_FORGET_WORDS[self.kind]} {self.right}{margin}"
        metric = METRICS[self.metric]
        word = _WORDS[self.kind].replace("better", "better (lower)" if metric.better < 0 else "better")
        return f"{metric.title} on {self.bench}: {self.left} {word} {self.right}{margin}"


_WORDS = {
    Kind.superiority: "better than",
    Kind.non_inferiority: "not worse than",
    Kind.equivalence: "equal to",
    Kind.difference: "different from",
}
_FORGET_WORDS = {
    Kind.superiority: "forgets less than",
    Kind.non_inferiority: "forgets no more than",
    Kind.equivalence: "forgets as much as",
    Kind.difference: "forgets differently from",
}
_CURVE_WORDS = {
    "entropy-half-step": "loses half of its entropy fall in fewer steps than",
    "reward-jump": "has a larger share of its reward rise within 5 steps than",
}
_KL_WORDS = {"kl/base_model": "KL(base‖model)", "kl/model_base": "KL(model‖base)"}


@dataclass(frozen=True)
class Claim:
    """A sentence and the statements that make it precise; all must hold."""

    id: str
    text: str
    statements: tuple[Statement, ...]


def column_of(metric: str) -> str:
    """The table column that a paired metric is read from."""
    return "pass@1" if metric == FORGETTING else metric


def load_claims(source: Any) -> list[Claim]:
    """Claims from a YAML file, from the composed `claims` group, or from a list of claims.

    Raises:
        OnpolError: naming the claim, the key, what was got and what is allowed.
    """
    where = "claims"
    if isinstance(source, str | Path):
        where, source = str(source), _read_yaml(Path(source))
    if source is None:
        return []
    if isinstance(source, Mapping):
        if "claims" not in source:
            raise OnpolError(f"{where}: no list `claims:`; got keys {', '.join(map(str, source)) or 'none'}.")
        source = source["claims"]
    if not isinstance(source, Sequence) or isinstance(source, str):
        raise OnpolError(f"{where}: `claims` must be a list of claims, got {type(source).__name__}.")
    claims = [_claim(item, f"{where}, claim {number}") for number, item in enumerate(source, 1)]
    names = [claim.id for claim in claims]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise OnpolError(f"{where}: two claims have the id {double!r}. Give each its own.")
    return claims


def _read_yaml(path: Path) -> Any:
    import yaml

    if not path.is_file():
        raise OnpolError(f"No claims file {path}. conf/claims/paper.yaml is an example to start from.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise OnpolError(f"{path} is not YAML: {str(error).splitlines()[0]}.") from error


def _claim(item: Any, where: str) -> Claim:
    if not isinstance(item, Mapping):
        raise OnpolError(f"{where}: must be a mapping with id, text, statements; got {type(item).__name__}.")
    _known(item, ("id", "text", "statements"), where)
    for key in ("id", "statements"):
        if not item.get(key):
            raise OnpolError(f"{where}: no `{key}`. A claim has id, text and a list of statements.")
    where = f"{where} ({item['id']})"
    if not isinstance(item["statements"], Sequence) or isinstance(item["statements"], str):
        raise OnpolError(f"{where}: `statements` must be a list, got {type(item['statements']).__name__}.")
    made = tuple(_statement(s, f"{where}, statement {i}") for i, s in enumerate(item["statements"], 1))
    return Claim(str(item["id"]), str(item.get("text") or item["id"]), made)


def _statement(item: Any, where: str, *, premise: bool = False) -> Statement:
    if not isinstance(item, Mapping):
        raise OnpolError(f"{where}: must be a mapping with {', '.join(_KEYS)}; got {type(item).__name__}.")
    _known(item, _KEYS, where)
    kind = Kind(_choice(item, "kind", [k.value for k in Kind], where))
    allowed = [*METRICS, FORGETTING]
    allowed = list(CURVES) if kind is Kind.curve else list(ASSOCIATIONS) if kind is Kind.association else allowed
    metric = _choice(item, "metric", allowed, where)
    needs = () if kind is Kind.association else ("left", "right")
    for key in needs:
        if not item.get(key):
            raise OnpolError(f"{where}: {kind} needs `{key}`, the label of a run (such as SFT or OPD from SFT).")
    if needs and str(item["left"]).lower() == str(item["right"]).lower():
        raise OnpolError(f"{where}: left and right are both {item['left']!r}; a claim compares two labels.")
    below = item.get("premise")
    if below is not None and premise:
        raise OnpolError(f"{where}: a premise has no premise of its own.")
    return Statement(
        kind=kind,
        metric=metric,
        bench=str(item.get("bench") or ("forgetting" if metric == FORGETTING else "edit")),
        left=str(item.get("left") or ""),
        right=str(item.get("right") or ""),
        margin=_margin(item.get("margin"), kind, metric, where),
        premise=_statement(below, f"{where}, premise", premise=True) if below is not None else None,
    )


def _margin(value: Any, kind: Kind, metric: str, where: str) -> float:
    if value is None:
        margins = kind in (Kind.non_inferiority, Kind.equivalence)
        return METRICS[column_of(metric)].margin if margins else 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise OnpolError(f"{where}: margin must be a number >= 0 in the metric's unit, got {value!r}.")
    if kind is Kind.equivalence and value == 0:
        raise OnpolError(f"{where}: equivalence needs a margin above 0: no data can show an exact tie.")
    if kind not in _PAIRED[:3]:
        raise OnpolError(f"{where}: {kind} takes no margin, got {value!r}. Remove it.")
    return float(value)


def _choice(item: Mapping[str, Any], key: str, allowed: Sequence[str], where: str) -> str:
    got = item.get(key)
    if got in allowed:
        return str(got)
    close = difflib.get_close_matches(str(got), allowed, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    told = "is missing" if got is None else f"{got!r} is unknown"
    raise OnpolError(f"{where}: {key} {told}; allowed: {', '.join(allowed)}.{hint}")


def _known(item: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in item:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise OnpolError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}.{hint}")
