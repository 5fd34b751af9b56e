"""The process that forks programs: imports once, forks per program, watches, kills, cleans up.

Owns limits and the end of every process of a program. It never holds tests or expected values (the
judge sends the program over a socket that the zygote only passes on), so nothing that a program finds
in memory inherited from here helps it. Under bubblewrap it is process 1 of a pid namespace: programs
cannot signal it, and killing "every process but me" kills exactly the program and its descendants.

Control messages (JSON on a SEQPACKET socket, from the judge): preload, run (with the program's descriptors),
mark (a test begins), census (threads and signal handlers of the program, as the kernel sees them), stop.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import threading
import time
from typing import Any, NoReturn

from onpol_cli.sandbox.inside import kernel, sweep
from onpol_cli.sandbox.inside.candidate import Descriptors, become_program, preload, warm_up

TICK_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1024 * 1024)


class Zygote:
    """State of the worker between and during programs."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.control = socket.socket(fileno=options["fds"][0])
        self.alone = os.getpid() == 1 or options["uid"] is not None
        self.nproc_base = self._nproc_base(options)
        self.files = sweep.Files(options["scratch"], options["uid"] is not None)
        self.own_rss = 0.0
        self.mapped = 0

    @staticmethod
    def _nproc_base(options: dict[str, Any]) -> int | None:
        """Tasks to add to a program's limit; None where RLIMIT_NPROC cannot be used."""
        if not options["nproc_binds"] or os.getuid() == 0:
            return None
        return 4 if options["uid"] is not None or os.getpid() == 1 else kernel.tasks_of_user(os.getuid()) + 64

    def serve(self) -> NoReturn:
        """Run programs until the judge is gone."""
        while True:
            message, fds = self.receive()
            if message["op"] == "preload":
                preload(message["modules"])
                self.settle()
            elif message["op"] == "run":
                Program(self, message["limits"], fds).watch()
                if not self.files.clean():
                    self.leave()  # too much to delete: a fresh namespace is cheaper
            else:
                self.send({"error": "nothing runs"})

    def settle(self) -> None:
        """After importing: make forks cheap, and know what belongs to the zygote itself."""
        gc.collect()
        gc.freeze()  # children then do not copy the pages of what is already loaded
        self.own_rss = _memory_mib("self")
        self.mapped = kernel.mapped_bytes()

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Next control message; leaves for good when the judge is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self.control, 65536, 4)
        except OSError:
            data, fds = b"", []
        return (json.loads(data), list(fds)) if data else self.leave()

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            self.leave()

    def leave(self) -> NoReturn:
        """End the worker, with everything in it."""
        self.control.close()  # the judge must not count on this worker while much is deleted
        self.kill_all()
        self.files.remove()
        os._exit(0)

    def kill_all(self) -> list[tuple[int, int, Any]]:
        """Kill and reap every process of the program; returns (pid, wait status, rusage) of each."""
        ended: list[tuple[int, int, Any]] = []
        deadline = time.monotonic() + 2.0
        self._kill_round()
        while True:
            try:
                # Alone, one round kills all at once and the rest is waiting; else forks may slip through.
                pid, status, usage = os.wait4(-1, 0 if self.alone else os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid:
                ended.append((pid, status, usage))
                continue
            if time.monotonic() > deadline:
                os._exit(1)  # unkillable (device wait): leave; the pool starts another worker
            self._kill_round()
            time.sleep(0.0005)

    def _kill_round(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.alone:
                os.kill(-1, signal.SIGKILL)
        if not self.alone:
            for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped ones cannot fork between the rounds
                for pid in descendants():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)


class Program:
    """One program while it runs."""

    def __init__(self, zygote: Zygote, limits: dict[str, Any], fds: list[int]) -> None:
        self.zygote = zygote
        self.limits = {**limits, "mapped": zygote.mapped, "shares_pids": os.getpid() != 1}
        self.cpu_reaped = self.mark_cpu = 0.0
        self.status: int | None = None
        self.reason: str | None = None
        self.folder = zygote.files.new()
        self.started = self.marked = time.monotonic()
        self.ended = 0.0
        self.pid = kernel.fork() if threading.active_count() == 1 else os.fork()
        if self.pid == 0:
            self._child(fds)
        for fd in fds:
            os.close(fd)
        self.alive = True
        self.handle = os.pidfd_open(self.pid)

    def _child(self, fds: list[int]) -> NoReturn:
        try:
            base = self.zygote.nproc_base
            nproc = None if base is None else base + self.limits["processes"]
            become_program(Descriptors(*fds), self.folder, self.limits, nproc)
        finally:
            os._exit(70)

    def watch(self) -> None:
        """Watch until the judge says stop; then report."""
        poller = select.poll()
        poller.register(self.zygote.control, select.POLLIN)
        poller.register(self.handle, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(self._patience_ms())}
            if self.alive and self.handle in ready:
                self._end(None)
            if self.zygote.control.fileno() in ready and self._obey():
                return
            if self.alive and self._limit_reached():
                self._end(self._limit_reached())
            if not self.alive and self.handle >= 0:
                poller.unregister(self.handle)
                os.close(self.handle)
                self.handle = -1

    def _patience_ms(self) -> int | None:
        if not self.alive:
            return None
        return int(1000 * TICK_S)

    def _obey(self) -> bool:
        message, _ = self.zygote.receive()
        if message["op"] == "mark":
            self.mark_cpu, self.marked = self._cpu(), time.monotonic()
        elif message["op"] == "census":
            self.zygote.send(census(self.pid) if self.alive else {"threads": 0})
        elif message["op"] == "stop":
            if self.alive:
                self._end(None)
            self._report()
            return True
        return False

    def _end(self, reason: str | None) -> None:
        self.ended = time.monotonic()
        self.reason = reason
        for pid, status, usage in self.zygote.kill_all():
            self.cpu_reaped += usage.ru_utime + usage.ru_stime
            if pid == self.pid:
                self.status = status
        self.alive = False

    def _cpu(self) -> float:
        if not self.alive:
            return self.cpu_reaped
        return (kernel.cpu_clock(self.pid) or 0.0) + sum(_cpu_of(pid) for pid in descendants() if pid != self.pid)

    def _limit_reached(self) -> str | None:
        now = time.monotonic()
        cpu = self._cpu()
        if cpu > self.limits["cpu"] or cpu - self.mark_cpu > self.limits["test_cpu"]:
            return "cpu"
        if now > self.started + self.limits["wall"] or now > self.marked + self.limits["test_wall"]:
            return "wall"
        pids = descendants()
        memory = sum(max(0.0, _memory_mib(pid) - self.zygote.own_rss) for pid in pids)
        if memory > self.limits["memory_mb"]:
            return "memory"
        return "processes" if len(pids) > 2 * self.limits["processes"] else None

    def _report(self) -> None:
        cpu = self.cpu_reaped
        over = cpu > self.limits["cpu"] or cpu - self.mark_cpu > self.limits["test_cpu"]
        signalled = os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None
        code = os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None
        reason = self.reason or ("cpu" if over or signalled == signal.SIGXCPU else None)
        wall = self.ended - self.started
        self.zygote.send({"cpu": cpu, "wall": wall, "reason": reason, "exit": code, "signal": signalled})


def descendants() -> list[int]:
    """Live processes below this one; orphans are adopted, so none is missed."""
    me = os.getpid()
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != me:
            fields = _stat(name)
            if fields:
                parents[int(name)] = int(fields[1])
    if me == 1:
        return list(parents)
    found, grew = {me}, True
    while grew:
        below = {pid for pid, parent in parents.items() if parent in found} - found
        found |= below
        grew = bool(below)
    return list(found - {me})


def census(pid: int) -> dict[str, Any]:
    """Threads, caught signals and number of processes of a program, as the kernel counts them."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return {"threads": 0}
    others = len(descendants()) - 1
    return {"threads": int(fields["Threads"]), "caught": int(fields["SigCgt"], 16), "others": others}


def _stat(pid: int | str) -> list[str]:
    """Fields of /proc/PID/stat from the state on (the name before may hold anything)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def _cpu_of(pid: int) -> float:
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / _TICKS_PER_S if fields else 0.0


def _memory_mib(pid: int | str) -> float:
    fields = _stat(pid)
    return int(fields[21]) * _PAGE_MIB if fields else 0.0


def serve(options: dict[str, Any]) -> NoReturn:
    """Entry point of `boot`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a handler would let a program signal even process 1
    zygote = Zygote(options)
    kernel.adopt_orphans()
    preload(options["preload"])
    warm_up(zygote.files.folder)
    zygote.settle()
    zygote.send({"ready": os.getpid()})
    zygote.serve()
