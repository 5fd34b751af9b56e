"""First code of an isolated process: give up privileges, then become a zygote or a judge.

Run as `python -S -P -s -B boot.py ROLE OPTIONS`, never imported. OPTIONS is JSON: `sandbox` (folder of
onpol_cli/sandbox), `path` (more sys.path entries), `uid` (to drop to, or null), `closed` (folders that
this user could not reach), `fds`, and what the
role needs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types


def _packages(folder: str) -> None:
    """Make `onpol_cli.sandbox` importable without running any `__init__` of onpol."""
    for name, path in (("onpol_cli", []), ("onpol_cli.sandbox", [folder])):
        module = types.ModuleType(name)
        module.__path__ = path
        sys.modules[name] = module


FIRST_KEPT = 900
"""Descriptors from here on stay open in programs: folders that Python needs."""


def _keep_reachable(folders: list[str]) -> None:
    """Open `folders`, which are closed to other users, and have Python import through the descriptors.

    Python may live below /root. /proc/self/fd/N leads into a folder that was opened before privileges
    were given up, whatever the modes of the folders above it.
    """
    where = {}
    for number, folder in enumerate(folders):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.dup2(fd, FIRST_KEPT + number)
        os.close(fd)
        where[folder] = f"/proc/self/fd/{FIRST_KEPT + number}"

    def moved(path: str) -> str:
        found = next((f for f in where if path == f or path.startswith(f"{f}/")), None)
        return path if found is None else where[found] + path[len(found) :]

    sys.path[:] = [moved(path) for path in sys.path]
    for module in list(sys.modules.values()):
        if isinstance(getattr(module, "__path__", None), list):
            module.__path__ = [moved(path) for path in module.__path__]
    sys.path_importer_cache.clear()


def _drop(uid: int) -> None:
    """Become an unprivileged user for good: RLIMIT_NPROC does not bind uid 0."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    assert os.getresuid() == (uid, uid, uid), "privileges were not dropped"


def main() -> None:
    """Set up the process and serve until the socket closes."""
    role, options = sys.argv[1], json.loads(sys.argv[2])
    sys.argv[:] = [""]
    _packages(options["sandbox"])
    sys.path.extend(options["path"])
    if options["uid"] is not None:
        _keep_reachable(options["closed"])
        _drop(options["uid"])
    importlib.import_module("onpol_cli.sandbox.inside.kernel").harden(options["seccomp"], memory_files=role == "judge")
    importlib.import_module(f"onpol_cli.sandbox.inside.{role}").serve(options)


if __name__ == "__main__":
    main()
