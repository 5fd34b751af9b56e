"""The files of programs: a private working folder each, and nothing left afterwards.

Owns creation and deletion. Under bubblewrap the folder lies on a private tmpfs that vanishes with the
worker, and /tmp and /dev/shm are swept as well; without it, so are files there of the worker's own
user, if it has one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

MAX_ENTRIES = 2000
"""More entries than this are not deleted one by one: the worker is replaced instead."""
SHARED = ("/tmp", "/var/tmp", "/dev/shm")
"""Where anybody may write on an ordinary machine."""


class Files:
    """Scratch space of one worker."""

    def __init__(self, scratch: str | None, own_user: bool) -> None:
        """`scratch` is the worker's folder without bubblewrap, None inside a private namespace.

        `own_user`: nobody else runs as this user, so that its files in shared places can be swept.
        """
        self.user = os.getuid() if own_user else -2
        self.private = scratch is None
        self.root = scratch or "/tmp"
        self.count = 0
        self.kept: set[str] = set()
        if scratch is not None:
            os.makedirs(scratch, mode=0o700, exist_ok=True)
        else:
            self.kept = {f"/tmp/{name}" for name in os.listdir("/tmp")}  # mount points, if Python lives there

    def new(self) -> str:
        """An empty folder for one program."""
        self.count += 1
        folder = f"{self.root}/program-{self.count}"
        os.mkdir(folder, 0o700)
        return folder

    def clean(self) -> bool:
        """Delete what the last program left. False if there is too much of it."""
        if self.private:
            return all(_sweep(_inside(place, self.kept)) for place in ("/tmp", "/dev/shm"))
        own = [p for place in SHARED for p in _inside(place, self.kept) if _owner(p) == self.user]
        return _sweep([p for p in own if p != self.root]) and _sweep(_inside(self.root, set()))

    def remove(self) -> None:
        """Delete the worker's folder (without bubblewrap; a namespace takes its own along)."""
        if not self.private:
            _open_up(self.root)
            shutil.rmtree(self.root, ignore_errors=True)


def _owner(path: str) -> int:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return -1


def _sweep(paths: list[str]) -> bool:
    """Delete; False if there is too much, or something stays."""
    if len(paths) > MAX_ENTRIES:
        return False
    for path in paths:
        if not _remove(path):
            return False
    return not any(map(os.path.lexists, paths))


def _remove(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(path)  # nearly always: a folder that was not used
        return True
    if not os.path.isdir(path) or os.path.islink(path):
        with contextlib.suppress(OSError):
            os.unlink(path)
        return True
    if _entries(path) > MAX_ENTRIES:
        return False
    _open_up(path)
    shutil.rmtree(path, ignore_errors=True)
    return True


def _inside(place: str, kept: set[str]) -> list[str]:
    try:
        return [path for name in os.listdir(place) if (path := f"{place}/{name}") not in kept]
    except OSError:
        return []  # no such place here


def _entries(place: str) -> int:
    count = 0
    for _, folders, files in os.walk(place):
        count += len(folders) + len(files)
        if count > MAX_ENTRIES:
            break
    return count


def _open_up(root: str) -> None:
    """Make every folder below `root` deletable again; a program may have taken its own rights away."""
    pending = [root]
    while pending:
        folder = pending.pop()
        with contextlib.suppress(OSError):
            if stat.S_IMODE(os.lstat(folder).st_mode) & 0o700 != 0o700:
                os.chmod(folder, 0o700)
            with os.scandir(folder) as entries:
                pending.extend(e.path for e in entries if e.is_dir(follow_symlinks=False))
