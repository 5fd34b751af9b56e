"""What the isolated processes ask of the kernel: prctl, seccomp, rlimits, CPU clocks.

Owns system calls that Python does not wrap. Linux only; on another system each of them does nothing
and says so by its return value.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import struct
import sys
import time
from typing import Any

MIB = 1024 * 1024
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_LIBC: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_FORK: Any = ctypes.PyDLL(None, use_errno=True).fork if sys.platform == "linux" else None
# Refused with EPERM: other processes' memory, mounts, namespaces, kernel programs, key rings, System V
# segments (they outlive processes), io_uring (it would bypass this filter). Numbers by architecture from
# the kernel's unistd tables.
_REFUSED = {
    "x86_64": (0xC000003E, 56, 435, [101, 310, 311, 165, 166, 155, 272, 308, 321, 298, 248, 249, 250, 323, 425, 426,
                                     427, 246, 175, 313, 428, 429, 430, 431, 432, 442, 167, 169, 29, 64, 68]),
    "aarch64": (0xC00000B7, 220, 435, [117, 270, 271, 40, 39, 41, 97, 268, 280, 241, 217, 218, 219, 282, 425, 426,
                                       427, 104, 105, 273, 428, 429, 430, 431, 432, 442, 224, 142, 186, 190, 194]),
}  # fmt: skip
_MEMORY_FILES = {"x86_64": [319, 447], "aarch64": [279, 447]}  # memfd_create, memfd_secret
# Allowed only on the caller itself (these arguments 0): the kernel would let a program change limits, priority
# and cores of the zygote, which has the same user, and so spoil the programs after it. prlimit64,
# setpriority, sched_setscheduler, sched_setparam, sched_setattr, sched_setaffinity, ioprio_set.
_OWN_ONLY = {
    "x86_64": {302: (0,), 141: (0, 1), 144: (0,), 142: (0,), 314: (0,), 203: (0,), 251: (1,)},
    "aarch64": {261: (0,), 140: (0, 1), 119: (0,), 118: (0,), 274: (0,), 122: (0,), 30: (1,)},
}
# F_SETOWN, F_SETSIG, F_SETOWN_EX of fcntl, FIOSETOWN, SIOCSPGRP of ioctl: a descriptor that becomes readable
# sends a signal of one's choice to a process of one's choice.
_SIGNAL_OWNERS = (8, 10, 15, 0x8901, 0x8902)
_NEW_NAMESPACES = 0x7E020000 | 0x00000080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} and NEWTIME
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def _prctl(option: int, value: int, pointer: Any = 0) -> bool:
    return _LIBC is not None and _LIBC.prctl(option, ctypes.c_ulong(value), pointer, 0, 0) == 0


def set_dumpable(on: bool) -> bool:
    """Whether processes of the same user may trace this one and read its /proc/PID/mem."""
    return _prctl(_PR_SET_DUMPABLE, int(on))


def fork() -> int:
    """Fork this process, which has one thread; like `os.fork`, at a third of its cost.

    The child does not run Python's at-fork handlers: they reset locks and threads that a process of one
    thread does not have, and reseed `random`, which programs get seeded anyway; in doing so they touch,
    and so copy, some 200 pages. The interpreter lock stays held throughout (PyDLL).
    """
    if _FORK is None:
        return os.fork()
    pid = int(_FORK())
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid


def die_with_parent() -> bool:
    """Be killed when the thread that forked this process ends."""
    return _prctl(_PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent dies."""
    return _prctl(_PR_SET_SUBREAPER, 1)


def harden(seccomp: bool, memory_files: bool) -> None:
    """Close this process to others of its user, forbid gaining privileges, die with the parent.

    It also becomes the first choice of the kernel's out-of-memory killer. Without `memory_files`, no memory
    can be held that belongs to no mapping and no file system: nothing would count or limit it.
    """
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # not Linux, or no /proc: only a preference
    die_with_parent()  # after dropping privileges, which clears it
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    set_dumpable(False)
    if seccomp:
        _install_filter(memory_files)


def _instruction(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, k)


def _install_filter(memory_files: bool) -> bool:
    """A seccomp filter that refuses what no graded program needs. True if installed."""
    machine = platform.machine()
    if machine not in _REFUSED:
        return False
    arch, clone, clone3, refused = _REFUSED[machine]
    refused = refused if memory_files else [*refused, *_MEMORY_FILES[machine]]
    load, equal, masked, answer = 0x20, 0x15, 0x45, 0x06
    program = [_instruction(load, 4), _instruction(equal, arch, 1, 0), _instruction(answer, _EPERM)]
    program += [_instruction(load, 0), _instruction(0x35, 0x40000000, 0, 1), _instruction(answer, _EPERM)]  # x32
    program += [_instruction(equal, clone3, 0, 1), _instruction(answer, _ENOSYS)]  # glibc then uses clone
    for number in refused:
        program += [_instruction(equal, number, 0, 1), _instruction(answer, _EPERM)]
    for number, arguments in _OWN_ONLY[machine].items():
        program += _zero_or_refused(number, arguments)
    program += [_instruction(equal, clone, 0, 3), _instruction(load, 16), _instruction(masked, _NEW_NAMESPACES, 0, 1)]
    program += [_instruction(answer, _EPERM), _instruction(answer, _ALLOW)]
    return _set_filter(program)


def _zero_or_refused(number: int, arguments: tuple[int, ...]) -> list[bytes]:
    """Instructions: call `number` passes only if these arguments are 0. Other calls fall through."""
    load, equal, answer = 0x20, 0x15, 0x06
    checks: list[bytes] = []
    for index in arguments:
        checks += [_instruction(load, 16 + 8 * index), _instruction(equal, 0, 1, 0), _instruction(answer, _EPERM)]
    checks += [_instruction(answer, _ALLOW)]
    return [_instruction(equal, number, 0, len(checks)), *checks]


def _set_filter(program: list[bytes]) -> bool:
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
    return _prctl(_PR_SET_SECCOMP, 2, header)


def confine_signals(pid: int) -> bool:
    """Refuse signals to any process but `pid`, for programs that share a pid namespace with others."""
    machine = platform.machine()
    calls = {
        "x86_64": (62, 234, [200, 129, 297, 424], {72: _SIGNAL_OWNERS, 16: _SIGNAL_OWNERS}),
        "aarch64": (129, 131, [130, 138, 240, 424], {25: _SIGNAL_OWNERS, 29: _SIGNAL_OWNERS}),
    }.get(machine)
    if calls is None:
        return False
    kill, tgkill, refused, by_request = calls
    load, equal, answer = 0x20, 0x15, 0x06
    program = [_instruction(load, 0)]
    for number in refused:
        program += [_instruction(equal, number, 0, 1), _instruction(answer, _EPERM)]
    for number, requests in by_request.items():
        checks = [_instruction(load, 24)]
        for request in requests:
            checks += [_instruction(equal, request, 0, 1), _instruction(answer, _EPERM)]
        program += [_instruction(equal, number, 0, len(checks) + 1), *checks, _instruction(answer, _ALLOW)]
    program += [_instruction(equal, kill, 1, 0), _instruction(equal, tgkill, 0, 3), _instruction(load, 16)]
    program += [_instruction(equal, pid, 1, 0), _instruction(answer, _EPERM), _instruction(answer, _ALLOW)]
    return _set_filter(program)


def _lower(which: int, soft: float, hard: float | None = None) -> None:
    current = resource.getrlimit(which)[1]
    top = soft if hard is None else hard
    if current != resource.RLIM_INFINITY:
        soft, top = min(soft, current), min(top, current)
    resource.setrlimit(which, (int(soft), int(top)))


def limit(limits: dict[str, Any], nproc: int | None) -> None:
    """Set the rlimits of one program, in its own process, after the fork and before its code.

    Address space is counted on top of what the preloaded modules already map (`mapped`, bytes).
    """
    seconds = math.ceil(limits["cpu"]) + 1
    _lower(resource.RLIMIT_CPU, seconds, seconds + 1)
    _lower(resource.RLIMIT_AS, limits["mapped"] + limits["memory_mb"] * MIB)
    _lower(resource.RLIMIT_FSIZE, limits["file_mb"] * MIB)
    _lower(resource.RLIMIT_NOFILE, limits["open_files"])
    _lower(resource.RLIMIT_CORE, 0)
    if hasattr(resource, "RLIMIT_MSGQUEUE"):
        _lower(resource.RLIMIT_MSGQUEUE, 0)
    if nproc is not None:
        _lower(resource.RLIMIT_NPROC, nproc)


def mapped_bytes() -> int:
    """Address space of this process, bytes (0 where /proc is missing)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def cpu_clock(pid: int) -> float | None:
    """CPU seconds of a live process, all its threads; None once it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def tasks_of_user(uid: int) -> int:
    """Threads that a user runs on this machine, for RLIMIT_NPROC, which counts them all."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == uid:
                    total += len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue  # ended meanwhile
    return total
