"""One worker seen from the parent: two processes (zygote, judge), a socket, at most one job.

Owns starting and ending the processes and moving bytes without ever blocking. `pool` decides what to do
with them. Imports only the standard library and is wary of whatever a worker sends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from typing import IO

from onpol_cli.sandbox import frames, isolation
from onpol_cli.sandbox.inside.sweep import delete_folder

START_S = 120.0
"""Seconds that a worker may take to import its modules."""
_CHUNK = 1 << 18


class Broken(Exception):
    """The worker is dead or talks nonsense."""


class Worker:
    """Two processes and the parent's end of their socket."""

    def __init__(self, plan: isolation.Plan, space_mb: int, preload: list[str]) -> None:
        """Start the processes; `ready` turns true once they have loaded."""
        self.ready = False
        self._handles: list[int] = []
        self.job: int | None = None
        self.jobs_done = 0
        self.deadline = time.monotonic() + START_S
        self.patience_s = 0.0
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        self._out: deque[memoryview] = deque()
        self._frames: Iterator[bytes] = iter(())
        self._in = bytearray()
        self._scratch: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.sock, theirs = socket.socketpair()
        control_a, control_b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, control_a, control_b:
            self._start(isolation.command(plan, "zygote", [control_b.fileno()], space_mb, preload), [control_b])
            fds = [theirs.fileno(), control_a.fileno()]
            self._start(isolation.command(plan, "judge", fds, space_mb, []), [theirs, control_a])
        self.sock.setblocking(False)

    def _start(self, command: isolation.Command, sockets: list[socket.socket]) -> None:
        process = subprocess.Popen(
            command.argv,
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            pass_fds=[sock.fileno() for sock in sockets],
            start_new_session=True,  # Ctrl-C in the terminal is the parent's business
            cwd="/",
        )
        self._processes.append(process)
        if command.scratch:
            self._scratch.append(command.scratch)

    def fileno(self) -> int:
        """For selectors."""
        return self.sock.fileno()

    @property
    def pids(self) -> list[int]:
        """Process ids of the two processes (of bubblewrap, where it is used)."""
        return [process.pid for process in self._processes]

    def welcome(self) -> None:
        """The processes have loaded: take hold of those that bubblewrap started.

        Its own death does not end them where they run as another user than bubblewrap (the kernel
        checks permission even for PR_SET_PDEATHSIG), so `end` kills them by these handles.
        """
        self.ready = True
        parents = set(self.pids)
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) in parents:
                    self._handles.append(os.pidfd_open(int(name)))

    def give(self, job: int, encoded: Iterator[bytes], patience_s: float) -> None:
        """Begin to send job number `job`; its deadline counts from when all of it is sent."""
        assert self.job is None and self.ready
        self.job, self._frames, self.patience_s = job, encoded, patience_s
        self.deadline = time.monotonic() + patience_s + START_S
        self.flush()

    @property
    def sending(self) -> bool:
        """Whether bytes wait to be sent."""
        return bool(self._out)

    def flush(self) -> None:
        """Send what the socket takes now; frames are encoded only when there is room for them."""
        try:
            while True:
                if not self._out:
                    frame = next(self._frames, None)
                    if frame is None:
                        self.deadline = time.monotonic() + self.patience_s
                        return
                    self._out.append(memoryview(frame))
                sent = self.sock.send(self._out[0][:_CHUNK])
                rest = self._out.popleft()[sent:]
                if rest:
                    self._out.appendleft(rest)
        except BlockingIOError:
            return
        except OSError as error:
            raise Broken(str(error)) from None

    def read(self) -> None:
        """Take in what has arrived.

        Raises:
            Broken: end of stream.
        """
        try:
            while chunk := self.sock.recv(_CHUNK):
                self._in += chunk
                if len(chunk) < _CHUNK:
                    return
        except BlockingIOError:
            return
        except OSError as error:
            raise Broken(str(error)) from None
        raise Broken("end of stream")

    def take(self, count: int = 1) -> list[bytes] | None:
        """Remove `count` whole frames from what has arrived; None if they are not all there.

        Raises:
            Broken: a frame longer than allowed.
        """
        found, at = [], 0
        for _ in range(count):
            if len(self._in) < at + frames.HEADER.size:
                return None
            (size,) = frames.HEADER.unpack_from(self._in, at)
            if size > frames.MAX_FRAME:
                raise Broken(f"frame of {size} bytes")
            at += frames.HEADER.size
            if len(self._in) < at + size:
                return None
            found.append(bytes(self._in[at : at + size]))
            at += size
        del self._in[:at]
        return found

    def complaint(self) -> str:
        """Last line that the processes wrote to stderr."""
        self.log.seek(0)
        lines = self.log.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def end(self, grace_s: float) -> None:
        """Let the processes go (they end when the socket closes), then kill what is left."""
        with contextlib.suppress(OSError):
            self.sock.close()
        if self._scratch and len(self._processes) == 2:
            # No namespace takes the programs along: only the zygote can find them all, once the judge is gone.
            self._processes[1].kill()
            grace_s = max(grace_s, 2.5)
        limit = time.monotonic() + grace_s
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, limit - time.monotonic()))
        for handle in self._handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        self._handles.clear()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()
        self.log.close()
        for folder in self._scratch:
            delete_folder(folder)
