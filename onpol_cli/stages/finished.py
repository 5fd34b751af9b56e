"""Whether parts of a reproduction that exist may be kept: made with these settings, from these weights.

Names of its runs say experiment, row and seed, and nothing else. Owns the refusals; `stages.reproduce` owns the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError
from onpol_cli.runs.lookup import RunInfo
from onpol_cli.runs.rundir import read_manifest
from onpol_cli.stages import build
from onpol_cli.stages.session import REMEDIES, differing, runs_root

RATE = "optim.lr"
"""The only one of `REMEDIES` that changes what a finished run is."""


def check_settings(parts: Iterable[tuple[str, Config]]) -> None:
    """Refuse to keep runs that were made with other settings.

    Args:
        parts: run names, and the configuration that each would be made with now. Those that do not exist pass.

    Raises:
        OnpolError: the settings that differ, in how many runs, and what to do.
    """
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    root = Path()
    for name, config in parts:
        root = runs_root(config)
        changed = other_settings(RunInfo(root / name, read_manifest(root / name)), config)
        if changed:
            found[name] = changed
    if not found:
        return
    first, *rest = found
    settings = {key: pair for name in found for key, pair in found[name].items()}
    told = ", ".join(f"{key} ({before}, now {now})" for key, (before, now) in list(settings.items())[:5])
    more = f" and {len(rest)} more" if rest else ""
    raise OnpolError(
        f"{root / first}{more}: made with other settings: {told}. Repeat with those, or give paths.runs=OTHER/runs "
        "for runs and tables of their own."
    )


def other_settings(info: RunInfo, config: Config) -> dict[str, tuple[Any, Any]]:
    """Settings of a run that differ now and make it another one, both values by name.

    Not counted: names of tutors (rows of the same reproduction, told by their weights), evaluation settings of what
    is only trained, and what stopped a run or got it going again.
    """
    done, trained = info.status == "done", info.manifest.get("model_role") != "evaluation"
    free = ("tutor", *(["eval."] if done and trained else []), *(word for word in REMEDIES if word != RATE))
    changed = differing(info, config)
    return {key: pair for key, pair in changed.items() if not key.startswith(free) and not _remedied(info, key, pair)}


def _remedied(info: RunInfo, key: str, pair: tuple[Any, Any]) -> bool:
    """Whether the rate may differ: the run is under way still, or began with today's and was given its own then."""
    taken = info.manifest.get("changed_on_resume") or []
    return key == RATE and (info.status != "done" or any(line.startswith(f"{key}: {pair[1]} -> ") for line in taken))


def check_training(name: str, config: Config) -> None:
    """Refuse to keep a finished training whose tutor, or start that is a run, has other weights now.

    Raises:
        OnpolError: the folder to remove.
    """
    folder = runs_root(config) / name
    known = read_manifest(folder).get("hashes") or {}
    tutors: dict[str, str | None] = {**config.method.tutors} or {"": config.tutor}
    specs = [(spec, (known.get("tutor") or {}).get(name)) for name, spec in tutors.items()]
    if not config.model.random_weights:
        specs.append((config.model.path, known.get("start")))
    for spec, before in specs:
        if spec is not None and before and _weights(spec, config) not in (None, before):
            raise OnpolError(
                f"{folder} was made from other weights than {spec} has now (trained again?). "
                f"Remove it and {folder.parent / f'eval-{name}'}, then repeat the command."
            )


def check_evaluation(name: str, model: str | None, config: Config) -> None:
    """Refuse to keep a finished evaluation of other weights than its model has now.

    Args:
        name: of the evaluation.
        model: run that it evaluates, None for `model.path`.
        config: paths, model.

    Raises:
        OnpolError: the folder to remove.
    """
    folder = runs_root(config) / name
    before = (read_manifest(folder).get("hashes") or {}).get("model")
    if model is None:
        spec, now = config.model.path, _weights(config.model.path, config, foreign=True)
    else:
        spec, now = model, build.model_hash(str(folder.parent / model / "checkpoint"))
    if before and now not in (None, before):
        raise OnpolError(
            f"{folder} holds answers of other weights than {spec} has now (trained again?). "
            "Remove it, then repeat the command."
        )


def _weights(spec: str, config: Config, *, foreign: bool = False) -> str | None:
    """Hash of what `spec` names; None for models that are missing or of the hub, and unless `foreign` for folders."""
    try:
        found = build.find_checkpoint(spec, config, fetch=False)
    except OnpolError:  # nothing to compare with; what is done may outlive the weights that it is from
        return None
    return build.model_hash(found.path) if found.run is not None or foreign else None
