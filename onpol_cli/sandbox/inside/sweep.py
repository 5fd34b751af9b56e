"""The files of programs: a private working folder each, and nothing left afterwards.

Owns creation and deletion. Under bubblewrap the folder lies on a private tmpfs that vanishes with the
worker, and /tmp and /dev/shm are swept as well; without it, so are files there of the worker's own
user, if it has one.
"""

from __future__ import annotations

import contextlib
import errno
import os

MAX_ENTRIES = 2000
"""More entries than this are not deleted one by one: the worker is replaced instead."""
FOLDER_WEIGHT = 10
"""A folder counts as so many entries more: some file systems take milliseconds to delete one."""
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
        self.folder = f"{self.root}/program"
        """Working folder of each program, one after the other."""
        self.kept: set[str] = set()
        if scratch is not None:
            os.makedirs(scratch, mode=0o700, exist_ok=True)
        else:
            self.kept = {f"/tmp/{name}" for name in os.listdir("/tmp")}  # mount points, if Python lives there

    def new(self) -> str:
        """An empty folder for one program."""
        os.mkdir(self.folder, 0o700)
        return self.folder

    def clean(self) -> bool:
        """Delete what the last program left. False if there is too much of it."""
        if self.private:
            return all(_sweep(_inside(place, self.kept)) for place in ("/tmp", "/dev/shm"))
        own = [p for place in SHARED for p in _inside(place, self.kept) if _owner(p) == self.user]
        return _sweep([p for p in own if p != self.root]) and _sweep(_inside(self.root, set()))

    def remove(self) -> None:
        """Delete the worker's folder (without bubblewrap; a namespace takes its own along)."""
        if not self.private:
            delete_folder(self.root)


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
    delete_folder(path)
    return True


def _inside(place: str, kept: set[str]) -> list[str]:
    try:
        return [path for name in os.listdir(place) if (path := f"{place}/{name}") not in kept]
    except OSError:
        return []  # no such place here


def _entries(place: str) -> int:
    """Entries below `place`; more than `MAX_ENTRIES` also where they lie too deep to be counted."""
    count, pending = 0, [place]
    while pending and count <= MAX_ENTRIES:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        count += FOLDER_WEIGHT
                        pending.append(entry.path)
        except OSError as error:
            count += MAX_ENTRIES if error.errno == errno.ENAMETOOLONG else 0
    return count


def delete_folder(path: str) -> None:
    """Delete a folder, whatever a program made of it; what cannot be deleted stays.

    Walks by descriptors, one open at a time: no nesting exceeds Python's recursion limit, the kernel's length
    of paths or the limit of open files, and no symbolic link leads elsewhere.
    """
    with contextlib.suppress(OSError):
        _empty(_open_folder(path, None))
        os.rmdir(path)


def _empty(here: int) -> None:
    """Delete what is in the folder open as `here`, and close it."""
    trail: list[tuple[tuple[int, int], list[str], str]] = []
    try:
        names = _delete_files(here)
        while names or trail:
            if names:
                name = names.pop()
                below = _open_folder(name, here)
                trail.append((_identity(here), names, name))
                os.close(here)
                here = below
                names = _delete_files(here)
                continue
            parent, names, name = trail.pop()
            above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = above
            if _identity(here) != parent:
                return  # somebody moves folders about
            os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _open_folder(name: str, within: int | None) -> int:
    how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        folder = os.open(name, how, dir_fd=within)
    except PermissionError:  # a program may have taken its own rights away
        os.chmod(name, 0o700, dir_fd=within)
        folder = os.open(name, how, dir_fd=within)
    os.fchmod(folder, 0o700)
    return folder


def _delete_files(folder: int) -> list[str]:
    """Delete all entries but folders; their names."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_folder in found if is_folder]


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino
