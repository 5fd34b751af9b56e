"""How a worker's processes are shut off from the machine, and the command line that does it.

Owns the choice between bubblewrap and rlimits alone, and the users that workers run as. What happens
after the process has started is `inside/boot` and `inside/kernel`.

Under bubblewrap a process sees a new root: system folders, the Python installation and this package's
`inside` code, all read-only; a private /tmp, /dev/shm, /proc; no network but loopback; no home folders,
so that neither secrets nor the benches' data files are there to be read. As root, the mounts are made
first (Python may live under /root, closed to others) and the process then drops to an unprivileged
user of its own, because RLIMIT_NPROC does not bind user 0.

Without it, limits, signals, processes and memory are held the same way, but a program can read what its
user may read, use the network, and write where anybody may; only /tmp, /var/tmp and /dev/shm are swept, and
the disk is bounded per file, not in all.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import pathlib
import platform
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from onpol_cli.core.config import SandboxConfig
from onpol_cli.core.errors import OnpolError

log = logging.getLogger(__name__)

BUBBLEWRAP, RLIMITS = "bubblewrap", "rlimits"
INSTALL = "install bubblewrap (Debian, Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap)"
_SANDBOX = os.path.dirname(os.path.abspath(__file__))
_SYSTEM = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/nix/store"]
_ETC = [
    "passwd",
    "group",
    "localtime",
    "timezone",
    "ssl",
    "ca-certificates",
    "fonts",
    "mime.types",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "nsswitch.conf",
    "hosts",
    "host.conf",
    "protocols",
    "services",
    "matplotlibrc",
]
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "USER": "onpol",
    "LOGNAME": "onpol",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "MPLBACKEND": "Agg",
    "MALLOC_ARENA_MAX": "2",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    **{f"{name}_NUM_THREADS": "1" for name in _THREADS},
}
"""All that a worker's environment holds: nothing of the parent's."""


@dataclass(frozen=True)
class Plan:
    """How workers are started here.

    Attributes:
        level: BUBBLEWRAP or RLIMITS.
        explanation: one line: what holds, and what would improve it.
        bwrap: path of bubblewrap, "" without.
        user_namespace: bubblewrap makes a user namespace (not root, or root without the rights to mount).
        drops: each process becomes an unprivileged user of its own.
    """

    level: str
    explanation: str
    bwrap: str = ""
    user_namespace: bool = False
    drops: bool = False
    closed: tuple[str, ...] = ()
    """Folders of Python that the unprivileged user can reach only through open descriptors."""


@dataclass(frozen=True)
class Command:
    """One process to start."""

    argv: list[str]
    environment: dict[str, str]
    scratch: str | None
    """Folder that the process uses and deletes; None under bubblewrap."""


def python_paths() -> tuple[str, list[str], list[str]]:
    """Interpreter, folders that must be visible to it, and module folders to add to its path."""
    python = os.path.realpath(sys.executable)
    modules = [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages") and os.path.isdir(p)]
    visible = [sys.base_prefix, sys.base_exec_prefix, os.path.realpath(sys.base_prefix), os.path.dirname(python)]
    wanted = sorted(dict.fromkeys([*visible, *modules, _SANDBOX]))
    outer = [p for p in wanted if not any(p.startswith(f"{other}/") for other in wanted)]
    return python, outer, modules


def _open_to_all(folder: str) -> bool:
    """Whether an unprivileged user can reach and list `folder`."""
    path = os.path.realpath(folder)
    while True:
        mode = os.stat(path).st_mode
        if not mode & stat.S_IXOTH:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def _system_mounts() -> list[str]:
    args: list[str] = []
    for folder in _SYSTEM:
        if os.path.islink(folder):
            args += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            args += ["--ro-bind", folder, folder]
    for name in _ETC:
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return args


def _bwrap_args(bwrap: str, user_namespace: bool, space_mb: int) -> list[str]:
    """bubblewrap and its options up to the command."""
    size = ["--size", str(space_mb * 1024 * 1024)] if "--size" in _help(bwrap) else []
    args = [bwrap, "--die-with-parent", "--as-pid-1", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    args += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    args += ["--unshare-user"] if user_namespace else ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    args += [*_system_mounts(), "--proc", "/proc", "--dev", "/dev"]
    args += ["--perms", "1777", *size, "--tmpfs", "/tmp", "--perms", "1777", *size, "--tmpfs", "/dev/shm"]
    for folder in python_paths()[1]:
        if not folder.startswith(("/usr/", "/lib/")):
            # bubblewrap makes missing parents with mode 700, closed to the user that we drop to.
            for parent in reversed(pathlib.PurePath(folder).parents[:-1]):
                args += ["--dir", str(parent)]
            args += ["--ro-bind", folder, folder]
    for package in (f"{folder}/onpol_cli" for folder in python_paths()[2]):
        if os.path.isdir(package):  # an installed onpol: its tasks hold answers
            args += ["--tmpfs", package, "--ro-bind", _SANDBOX, _SANDBOX, "--remount-ro", package]
    return [*args, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"]


@functools.cache
def _help(bwrap: str) -> str:
    return subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False, timeout=10).stdout


@functools.cache
def _works(bwrap: str, user_namespace: bool) -> str:
    """Start Python in such a namespace; "" if that works, else why not."""
    argv = [*_bwrap_args(bwrap, user_namespace, 16), python_paths()[0], "-S", "-s", "-c", "pass"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def make_plan() -> Plan:
    """The best isolation that works on this machine, found by trying it."""
    bwrap, root = shutil.which("bwrap") or "", sys.platform == "linux" and os.geteuid() == 0
    if bwrap and root and not _works(bwrap, False):
        return Plan(BUBBLEWRAP, "own namespaces, read-only system, no network, unprivileged user", bwrap, False, True)
    reason = _works(bwrap, True) if bwrap else "bubblewrap is not installed"
    if not reason:
        weak = "; process limits by polling only, because Python runs as root here" if root else ""
        return Plan(BUBBLEWRAP, f"own namespaces, read-only system, no network{weak}", bwrap, True, False)
    closed = tuple(folder for folder in python_paths()[1] if root and not _open_to_all(folder))
    lacks = "programs can read files and use the network"
    remedy = (
        INSTALL if not bwrap else "allow user namespaces (sysctl user.max_user_namespaces, AppArmor) or run as root"
    )
    return Plan(RLIMITS, f"{reason}: {lacks}; {remedy}", drops=root, closed=closed)


def isolation_level(config: SandboxConfig) -> tuple[str, str]:
    """The level in force and one line about it, for `doctor` and the manifest.

    Args:
        config: the sandbox section; its `require_isolation` is not enforced here.

    Returns:
        ("bubblewrap" or "rlimits", explanation and remedy).
    """
    plan = make_plan()
    demand = "; sandbox.require_isolation=true" if config.require_isolation else ""
    return plan.level, plan.explanation + demand


@functools.cache
def _warn(explanation: str) -> None:
    log.warning("Untrusted code runs with resource limits only: %s.", explanation)


def checked_plan(config: SandboxConfig) -> Plan:
    """`make_plan`, warning once or refusing where bubblewrap is missing.

    Raises:
        OnpolError: no bubblewrap and `config.require_isolation`.
    """
    if sys.platform != "linux":
        raise OnpolError(
            f"Untrusted code is run on Linux only, this is {sys.platform}. Use Linux or a Linux container."
        )
    plan = make_plan()
    if plan.level != BUBBLEWRAP:
        if config.require_isolation:
            raise OnpolError(
                f"sandbox.require_isolation=true, but programs cannot be isolated here: {plan.explanation}. "
                "Or set sandbox.require_isolation=false to run them with resource limits only."
            )
        _warn(plan.explanation)
    return plan


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)


def _random_user() -> int:
    """A user id that nobody else is likely to have, inside this container's range."""
    with open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    for low, high in ((1_900_000_000, 2_100_000_000), (20_000, 60_000)):
        if any(start <= low and high < start + length for start, _, length in ranges):
            return low + secrets.randbelow(high - low)
    return 65534


def command(plan: Plan, role: str, fds: list[int], space_mb: int, preload: list[str]) -> Command:
    """The command line of one process of a worker.

    Args:
        plan: how to isolate.
        role: module of `inside` to become: "zygote" or "judge".
        fds: inherited descriptors that the role uses.
        space_mb: size of its private /tmp, MiB.
        preload: modules that a zygote imports.
    """
    python, _, modules = python_paths()
    scratch = None if plan.level == BUBBLEWRAP else f"{tempfile.gettempdir()}/onpol-sandbox-{secrets.token_hex(8)}"
    options: dict[str, Any] = {
        "sandbox": _SANDBOX, "path": modules, "fds": fds, "preload": preload, "scratch": scratch,
        "uid": _random_user() if plan.drops else None, "closed": list(plan.closed), "seccomp": True,
        "nproc_binds": plan.drops or plan.level == RLIMITS or _kernel() >= (5, 14),
    }  # fmt: skip
    boot = [python, "-S", "-P", "-s", "-B", f"{_SANDBOX}/inside/boot.py", role, json.dumps(options)]
    prefix = _bwrap_args(plan.bwrap, plan.user_namespace, space_mb) if plan.level == BUBBLEWRAP else []
    # Programs get the same set and dict order in every worker; the judge keeps random hashes.
    seed = {"PYTHONHASHSEED": "0"} if role == "zygote" else {}
    return Command([*prefix, *boot], {**ENVIRONMENT, **seed}, scratch)
