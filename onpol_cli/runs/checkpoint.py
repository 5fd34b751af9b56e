"""Folders of weights and state that are either whole or not there.

A folder is written beside its place, every file hashed into `hashes.json`, all synced, then renamed. `settle` puts
back or removes what a writer that was cut short left: `.NAME.PID.tmp`, and `.NAME.PID.old` that was to be replaced.
`verify` re-hashes at load: truncated, bit-flipped and half-written folders are refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.files import make_folder, sha256_file, sync

HASHES = "hashes.json"
STEP = "step-"
STATE = "learner.pt"
"""Weights, optimiser and random state: what a resumable state cannot do without."""
MODEL = "model"
"""Folder inside a state: its weights as a Hugging Face folder, with hashes of its own."""
WEIGHTS = ("*.safetensors", "config.json", STATE)
"""Files that must be listed where they stand: weights of unknown hash are not trusted."""
LEFT = re.compile(r"\.(.+)\.\d+\.(?:tmp|old)")
"""Name of a folder that a writer leaves when it is cut short; the group is what it was writing."""


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Call `fill(temporary)` and put the result at `target`. For the holder of the run's lock.

    Raises:
        RunFailed: it cannot be written (no space, no permission); `target` is then as it was before, or new and whole
            if only the sync after the rename failed.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    settle(target.parent, target.name)
    try:
        make_folder(target.parent)
        temporary.mkdir()
        fill(temporary)
        seal(temporary)
        if target.exists():
            os.replace(target, temporary.with_suffix(".old"))
        os.replace(temporary, target)
        sync(target.parent)
    except Exception as error:
        reason = why_unwritten(error)
        if reason is None:
            raise
        raise RunFailed(
            f"Cannot write checkpoint {target}: {reason}. Free space, then repeat with --resume."
        ) from error
    finally:
        settle(target.parent, target.name)


def settle(parent: Path, name: str | None = None) -> None:
    """Put back or remove what writers of folders in `parent` left when they were cut short.

    A folder that was moved aside goes back to its place if that is empty. For the holder of the run's lock: it is
    what makes sure that no living process is writing these.

    Args:
        name: of the one folder that is meant; None for all in `parent`.
    """
    try:
        found = [(item, LEFT.fullmatch(item.name)) for item in sorted(parent.iterdir())]
    except OSError:  # there is no such folder, or it cannot be read: what needs it will say so
        return
    left = [(item, parent / match[1]) for item, match in found if match and name in (None, match[1])]
    for item, target in left:  # before anything is removed, which may take long
        if item.suffix == ".old" and not target.exists():
            _put_back(item, target)
    for item, target in left:
        if item.suffix == ".tmp" or target.exists():
            shutil.rmtree(item, ignore_errors=True)


def _put_back(item: Path, target: Path) -> None:
    try:
        os.replace(item, target)
        sync(target.parent)
    except OSError as error:
        LOGGER.warning("Cannot move %s back to %s: %s. Move it by hand.", item, target.name, error.strerror)


def why_unwritten(error: BaseException) -> str | None:
    """What the system said when a file could not be written; None if `error` is about something else.

    torch reports a failed write as a RuntimeError about positions that came of it, the Rust libraries (safetensors,
    tokenizers) as errors of their own that end in the system's words and number.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return why_unwritten(error.__context__) if "inline_container" in str(error) else None
    told = re.search(r"([^:]+) \(os error \d+\)", str(error))
    return told.group(1).strip() if told else None


def seal(folder: Path) -> None:
    """Hash every file of `folder` into hashes.json and sync all, directories too, to disk."""
    files = sorted(item for item in folder.rglob("*") if item.is_file() and item != folder / HASHES)
    hashes = {str(item.relative_to(folder)): sha256_file(item) for item in files}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    for item in [*files, folder / HASHES]:
        item.chmod(0o644)  # safetensors writes 0600, which other users of a shared folder cannot read
        sync(item)
    for item in [*(item for item in folder.rglob("*") if item.is_dir()), folder]:
        sync(item)


def verify(folder: Path, needs: Sequence[str] = ()) -> None:
    """Check `folder` against its hashes.

    Args:
        folder: a state, or a model folder that was sealed.
        needs: files that must be among the hashed ones. Weights that stand in `folder` must be in any case.

    Raises:
        OnpolError: a file is missing, unlisted, unreadable or differs; the message names it.
    """
    hashes = _hashes(folder)
    present = [item.name for pattern in WEIGHTS for item in sorted(folder.glob(pattern))]
    for name in (*needs, *present):
        if name not in hashes:
            raise OnpolError(f"Checkpoint {folder}: {HASHES} does not list {name}, it is damaged. Use an earlier one.")
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise OnpolError(f"Checkpoint {folder}: {name} is missing. Use an earlier one.")
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            raise OnpolError(f"Checkpoint {folder}: {name} cannot be read ({error.strerror}).") from error
        if found != expected:
            raise OnpolError(f"Checkpoint {folder}: {name} does not match its hash (truncated or damaged).")


def recorded_hash(file: Path) -> str | None:
    """SHA-256 that `file`'s folder was sealed with, hex; None if it was not. Whether it still holds `verify` tells."""
    return _hashes(file.parent).get(file.name) if (file.parent / HASHES).is_file() else None


def _hashes(folder: Path) -> dict[str, str]:
    """Hash by file name."""
    file = folder / HASHES
    if not file.is_file():
        raise OnpolError(f"Checkpoint {folder} has no {HASHES}: it was not finished. Use an earlier one.")
    try:
        hashes = json.loads(file.read_bytes())
        sound = isinstance(hashes, dict) and bool(hashes)
    except (ValueError, OSError):  # ValueError: no JSON, or bytes that are no text
        sound = False
    if not sound:
        raise OnpolError(f"Checkpoint {folder}: {HASHES} is damaged. Use an earlier one.")
    return dict(hashes)


def step_folder(state: Path, step: int) -> Path:
    """Where the state after `step` optimiser steps lives."""
    return state / f"{STEP}{step:07d}"


def steps_saved(state: Path) -> list[int]:
    """Steps with a state folder, ascending. Unverified."""
    if not state.is_dir():
        return []
    names = (item.name.removeprefix(STEP) for item in state.iterdir() if item.name.startswith(STEP))
    return sorted(int(name) for name in names if name.isdecimal())


def latest_valid(state: Path) -> tuple[int, Path] | None:
    """The newest state that verifies, None when there is no state at all.

    Raises:
        OnpolError: states exist and none verifies. A damaged newest one is skipped with a log line.
    """
    steps = steps_saved(state)
    reason = ""
    for step in reversed(steps):
        folder = step_folder(state, step)
        try:
            verify(folder, [STATE])
        except OnpolError as error:
            reason = str(error)
            LOGGER.warning("%s Trying the state before it.", error)
            continue
        return step, folder
    if steps:
        raise OnpolError(f"No usable state in {state}: {reason}")
    return None


def prune(state: Path, keep: int, newest: int | None = None) -> None:
    """Delete all but the last `keep` states.

    Args:
        state: folder of states.
        keep: at least 1.
        newest: step of the state just written. Those after it are damaged ones that a resume has passed over.
    """
    assert keep >= 1
    steps = steps_saved(state)
    over = [step for step in steps if newest is not None and step > newest]
    for step in over + [step for step in steps if step not in over][:-keep]:
        shutil.rmtree(step_folder(state, step), ignore_errors=True)
