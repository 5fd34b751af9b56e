"""Opening and closing a run: its name, directory, manifest, log and final status.

Owns what every run has in common, whatever it does. `stages.build` makes the parts.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onpol_cli.core.compose import as_dict, from_yaml, to_yaml
from onpol_cli.core.config import Config
from onpol_cli.core.console import LOGGER, setup_logging
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import write_atomic
from onpol_cli.runs.lookup import RunInfo, list_runs
from onpol_cli.runs.manifest import provenance
from onpol_cli.runs.rundir import CONFIG, RunDir

FREE = ("run", "paths", "matrix", "claims", "parallel")
"""Parts of a configuration that may differ on resume: they change no number (`parallel`: beyond rounding)."""
FREE_ROLLOUT = (
    *("rollout.servers", "rollout.local_servers", "rollout.teacher_servers", "rollout.exchange"),
    *("rollout.weight_transfer", "rollout.timeout_s", "rollout.concurrency", "rollout.retries"),
)
"""Likewise where servers are and how they are reached: those of a resumed run may be new ones."""
FREE_COST = (
    *("learner.micro_tokens", "learner.gradient_checkpointing", "learner.threads", "learner.compile", "learner.liger"),
    *("rollout.max_batch", "rollout.gpu_memory", "rollout.enforce_eager", "rollout.sleep", "rollout.tensor_parallel"),
    *("rollout.max_context", "sandbox.workers", "model.device"),
)
"""Likewise what a step costs: lowered after it ran out of memory."""
REMEDIES = ("optim.lr", "monitor.", "rollout.canary_tolerance")
"""What is changed to get a stopped run going again; another run from there on, so that the manifest says so."""
ORIGINS = ("tutor", "start", "model", "data", "answers")
"""Parts of a manifest's `hashes` that the settings only name: `latest:` and run names may mean others later."""


def runs_root(config: Config) -> Path:
    """Folder of run directories."""
    return Path(config.paths.runs).expanduser()


def variant(config: Config) -> str:
    """Name of the method's YAML choice."""
    return config.method.variant or config.method.name


def label(config: Config) -> str:
    """How tables call the method."""
    return config.method.label or variant(config).upper()


def time_stamp() -> str:
    """UTC date and time, the end of a default name."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")


def default_name(command: str, config: Config, tutor: str | None = None) -> str:
    """`<command>-<method>-<tutor>-s<seed>-<time>`."""
    parts = [command, variant(config), *([tutor] if tutor else []), f"s{config.seed}", time_stamp()]
    return "-".join(parts)


@contextmanager
def open_run(
    config: Config, name: str, command: list[str], *, resume: bool, folder: Path | None = None, **facts: Any
) -> Iterator[RunDir]:
    """A run directory with its manifest; the status says how it ended.

    Args:
        name: directory name, unless `run.name` or `folder` says otherwise.
        command: words to repeat it with.
        facts: further manifest entries.
    """
    path = folder or run_folder(config, name, resume)
    if follower():
        from onpol_cli.stages.torchrun import FollowedRun

        yield FollowedRun(path, resumed=resume)
        return
    with RunDir.open(path, resume=resume) as run:
        before = run.manifest()
        changed = check_same_settings(run, config, same_models(before, facts)) if run.resumed else []
        check_same_origins(run, before, facts)
        write_atomic(run.path / CONFIG, to_yaml(config))
        setup_logging(file=run.path / "run.log")
        start = time.perf_counter()
        if "hashes" in facts:  # what is not known now (the base of an answers file, say) stays as it was
            known = {name: value for name, value in facts["hashes"].items() if value is not None}
            facts["hashes"] = facts["hashes"] | (before.get("hashes") or {}) | known
        if changed:
            LOGGER.warning("resumed with other settings than before: %s", ", ".join(changed))
            facts["changed_on_resume"] = [*before.get("changed_on_resume", []), *changed]
        started = before.get("started") or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        run.update_manifest(
            run=run.name, started=started, status="running", **provenance(command, config.seed), **facts
        )

        def end(status: str) -> None:
            seconds = round(time.perf_counter() - start, 2) + float(before.get("wall_s", 0.0))
            run.update_manifest(status=status, wall_s=seconds)

        try:
            yield run
        except BaseException as error:
            try:
                end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            except (OnpolError, OSError) as unwritten:  # what the run ends of is told by the error under way
                LOGGER.warning("%s", unwritten)
            raise
        end("done")


def follower() -> bool:
    """Whether this is a process of torchrun other than the first: it must write nothing."""
    return int(os.environ.get("RANK", "0")) > 0 and "WORLD_SIZE" in os.environ


def run_folder(config: Config, name: str, resume: bool) -> Path:
    """Where a run lies: `run.name`, else with --resume the newest unfinished one like it, else `name`, a new one."""
    root = runs_root(config)
    if resume and not config.run.name:
        return resumable(config, name)
    path = root / (config.run.name or name)
    if resume and not path.is_dir() and not follower():
        LOGGER.warning("there is no run %s to resume in %s: starting it", path.name, root)
    return path


def resumable(config: Config, name: str) -> Path:
    """The newest unfinished run of the same command and settings."""
    stem = name.rsplit("-", 2)[0]
    for info in reversed(list_runs(runs_root(config))):
        if info.status != "done" and info.name.startswith(stem) and not differing(info, config):
            LOGGER.info("resuming %s", info.path)
            return info.path
    raise OnpolError(
        f"No unfinished run {stem}* with these settings in {runs_root(config)}. Name it: run.name=NAME --resume."
    )


def differing(info: RunInfo, config: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that change numbers and differ between a run's configuration and `config`: by dotted name, both values.

    Free ones (`FREE`, `FREE_ROLLOUT`, `FREE_COST`) are left out.
    """
    file = info.path / CONFIG
    if not file.is_file():
        return {}
    old, new = (_flat(as_dict(item)) for item in (from_yaml(file.read_text(encoding="utf-8")), config))
    changed = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    free = {*FREE_ROLLOUT, *FREE_COST}
    return {
        key: (before, now)
        for key, (before, now) in changed.items()
        if before != now and key.split(".")[0] not in FREE and key not in free
    }


def check_same_settings(run: RunDir, config: Config, same: Sequence[str] = ()) -> list[str]:
    """Refuse to resume a run with other settings than it was started with, `REMEDIES` apart.

    Args:
        same: starts of settings that name in other words what they named before.

    Returns:
        `name: before -> now` of each remedy that was taken.
    """
    changed = differing(RunInfo(run.path, {}), config)
    other = [key for key in changed if not key.startswith((*REMEDIES, *same))]
    if other:
        raise OnpolError(
            f"Run {run.name} was started with other settings: {', '.join(other[:5])}. "
            "Resume with the settings of its config.yaml, or choose another run.name."
        )
    return [f"{key}: {before} -> {now}" for key, (before, now) in changed.items() if key.startswith(REMEDIES)]


def check_same_origins(run: RunDir, before: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose models, problems or answers are others now under the same words.

    Args:
        before: the run's manifest as it was left, which may hold no hashes yet, or those of an older version.
        facts: manifest entries of the command that goes on with it.
    """
    old, new = (_flat(item.get("hashes") or {}) for item in (before, facts))
    changed = [key for key in new if key.split(".")[0] in ORIGINS and old.get(key) and new[key] not in (None, old[key])]
    if not changed:
        return
    told, words = [], []
    for key in changed:
        setting, former, present = _setting(key), _named(key, before), _named(key, facts)
        if former is None or former == present:
            told.append(f"{setting}, changed since")
        else:
            told.append(f"{setting} was {former}, is {present}")
            words.append(f"{setting} {former}" if setting.startswith("--") else f"{setting}={former}")
    again = f"Give {' '.join(words)} run.name={run.name} --resume" if len(words) == len(told) else f"Remove {run.path}"
    raise OnpolError(
        f"Run {run.name} was started with other weights, problems or answers: {'; '.join(told)}. "
        f"{again}, or choose another run.name."
    )


def _setting(key: str) -> str:
    """What gives the part `key` of `hashes`: a setting, an option, or words for problems."""
    part, _, name = key.partition(".")
    if part == "tutor":
        return f"method.tutors.{name}" if name else "tutor"
    return {"start": "model.path", "model": "--model", "answers": "--answers"}.get(part) or f"problems of {name}"


def _named(key: str, manifest: Mapping[str, Any]) -> str | None:
    """What the model `key` of `hashes` was called, so that it can be named again; None for problems."""
    part, _, name = key.partition(".")
    if part == "tutor":
        found = (manifest.get("tutors") or {}).get(name) or (None if name else manifest.get("tutor"))
    elif part == "start":
        start = manifest.get("start") or {}
        found = " model.revision=".join(filter(None, (start.get("path"), start.get("commit"))))
    elif part == "answers":
        found = manifest.get("answers")
    else:
        model = (manifest.get("evaluates") or {}) if part == "model" else {}
        last = Path(model.get("path") or "").name == "checkpoint"
        found = (model.get("run") if last else None) or model.get("path")
    return found or None


def same_models(before: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Starts of the settings that name models, where two manifests have the same hashes of these."""
    old, new = (item.get("hashes") or {} for item in (before, facts))
    tutors = new.get("tutor") or {}
    same = ("tutor", "method.tutors.") if tutors and None not in tutors.values() and tutors == old.get("tutor") else ()
    return same + (("model.path", "model.revision") if new.get("start") and new["start"] == old.get("start") else ())


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) and item else {prefix + key: item}
    return flat
