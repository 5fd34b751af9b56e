"""Whether runs may stand in one table: same evaluation settings, same data, no doubles.

Owns the refusal and its wording. `--force` turns every refusal into a warning that is printed in the
tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onpol_cli.comparison.records import EvalRun
from onpol_cli.core.errors import OnpolError

_NOT_SETTINGS = frozenset({"benches", "data", "kl", "originals"})
"""Keys of eval_settings that may differ: which benches were run (each is compared only with itself),
where their files lie (hashes are compared instead), and whether divergences were measured and originals run."""


def check_compatible(runs: Sequence[EvalRun], *, force: bool = False) -> list[str]:
    """Warnings to print with the tables; refuses instead unless `force`.

    Raises:
        OnpolError: settings, data or doubles differ and `force` is off; every difference is named.
    """
    found = _settings(runs) + _data(runs) + _sampling(runs) + _doubles(runs)
    if found and not force:
        listed = "\n  ".join(found)
        raise OnpolError(
            f"These runs must not share a table:\n  {listed}\n"
            "Evaluate them with the same settings, leave some out, or add --force to print the warning into the table."
        )
    return found


def _settings(runs: Sequence[EvalRun]) -> list[str]:
    settings = [_flat(run.manifest.get("eval_settings") or {}) for run in runs]
    names = sorted({name for one in settings for name in one if name.split(".")[0] not in _NOT_SETTINGS})
    found = []
    for name in names:
        for run, one in zip(runs[1:], settings[1:], strict=True):
            if one.get(name) != settings[0].get(name):
                found.append(_differs(name, runs[0], settings[0].get(name), run, one.get(name)))
                break
    return found


def _data(runs: Sequence[EvalRun]) -> list[str]:
    first: dict[str, tuple[EvalRun, str]] = {}
    found = []
    for run in runs:
        for bench, digest in ((run.manifest.get("hashes") or {}).get("data") or {}).items():
            seen, known = first.setdefault(bench, (run, digest))
            if digest != known:
                found.append(_differs(f"data of {bench}", seen, str(known)[:12], run, str(digest)[:12]))
    return found


def _sampling(runs: Sequence[EvalRun]) -> list[str]:
    """Answers per problem and temperatures as they lie in the files (an interrupted run is caught here)."""
    shapes: dict[str, tuple[EvalRun, str]] = {}
    found = []
    for run in runs:
        for bench in sorted({answer.bench for answer in run.answers}):
            answers = [answer for answer in run.answers if answer.bench == bench]
            heats = sorted({answer.temperature for answer in answers})
            shape = f"{len({a.problem_id for a in answers})} problems, {len(answers)} answers at T={heats}"
            seen, known = shapes.setdefault(bench, (run, shape))
            if shape != known:
                found.append(_differs(f"answers of {bench}", seen, known, run, shape))
    return found


def _doubles(runs: Sequence[EvalRun]) -> list[str]:
    seen: dict[tuple[str, int], EvalRun] = {}
    found = []
    for run in runs:
        other = seen.setdefault((run.label, run.seed), run)
        if other is not run:
            found.append(f"{run.key} was evaluated twice: {other.name} and {run.name}")
    return found


def without_doubles(runs: Sequence[EvalRun]) -> list[EvalRun]:
    """The last evaluation of each label and seed (order of first appearance)."""
    return list({(run.label, run.seed): run for run in runs}.values())


def _differs(what: str, left: EvalRun, a: object, right: EvalRun, b: object) -> str:
    return f"{what}: {a} in {left.name}, {b} in {right.name}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = item
    return flat
