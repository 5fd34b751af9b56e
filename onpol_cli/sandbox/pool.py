"""The pool: jobs in, verdicts out, whatever the programs do.

Owns scheduling, retries and the life of the workers. One job at a time per worker; a worker that dies is
replaced and its job tried once more; a job whose judge stays silent past its limits is a TIMEOUT.
Workers end when the parent does, however it ends: their sockets close, and the kernel kills them when the
thread that started them is gone.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from onpol_cli.core.config import SandboxConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.sandbox import codec, isolation, wire
from onpol_cli.sandbox.jobs import Job, Limits, ReferenceJob, ReferenceResults, Status, Verdict
from onpol_cli.sandbox.worker import Broken, Worker

_ATTEMPTS = 2
"""Attempts at a job whose worker dies; deaths of workers that ran other programs before do not end them."""
_FAILED_STARTS = 3
OnVerdict = Callable[[int, Verdict], None]


_TEAMS: weakref.WeakSet[_Team] = weakref.WeakSet()


def _forget_in_fork() -> None:
    """A fork of the parent must not hold the sockets open: workers end when the last copy closes."""
    for team in list(_TEAMS):
        for worker in team.workers:
            worker.sock.close()


os.register_at_fork(after_in_child=_forget_in_fork)


class _Team:
    """The workers of one process, apart from `Sandbox` so that they end when it is garbage."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.owner = os.getpid()
        _TEAMS.add(self)
        # The kernel kills workers with the *thread* that started them, so that thread lives as long as they do.
        self.starter = ThreadPoolExecutor(1, thread_name_prefix="onpol-sandbox")

    def end(self) -> None:
        if os.getpid() != self.owner:
            return  # a fork of the parent: the workers are not its own
        for worker in self.workers:
            worker.sock.close()
        for worker in self.workers:
            worker.end(grace_s=2.0)
        self.workers.clear()
        self.starter.shutdown()


class Sandbox:
    """Runs untrusted programs. A context manager; workers start with the first job.

    Safe to use from several threads, one batch at a time. After a fork of the parent, the child starts
    workers of its own.
    """

    def __init__(self, config: SandboxConfig, preload: Sequence[str] = ()) -> None:
        """Prepare, without starting anything.

        Args:
            config: limits, number of workers, and whether isolation is required.
            preload: modules that every worker imports once, besides `config.preload`; missing ones
                are skipped.

        Raises:
            OnpolError: `config.require_isolation` and no bubblewrap, or not Linux.
        """
        self._plan = isolation.checked_plan(config)
        self.limits = Limits.from_config(config)
        self._size = config.workers or len(os.sched_getaffinity(0)) + 1
        self._preload = list(dict.fromkeys([*config.preload, *preload]))
        self._space_mb = max(64, 8 * config.file_mb)
        self._lock = threading.RLock()
        self._team = _Team()
        self._finalizer = weakref.finalize(self, self._team.end)

    @property
    def isolation(self) -> str:
        """The level in force: "bubblewrap" or "rlimits"."""
        return self._plan.level

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker. The sandbox can be used again afterwards; it then starts new ones."""
        with self._lock:
            self._finalizer()
            self._renew()

    def _renew(self) -> None:
        self._finalizer.detach()
        self._team = _Team()
        self._finalizer = weakref.finalize(self, self._team.end)

    def run(self, jobs: Sequence[Job], on_verdict: OnVerdict | None = None) -> list[Verdict]:
        """Run `jobs`; verdicts in their order.

        Args:
            jobs: any mixture of kinds.
            on_verdict: called in this thread with (index, verdict) as each one arrives, in any order.

        Raises:
            OnpolError: a job without tests, or with an unknown comparison.
            RunFailed: workers cannot be started.
        """
        for job in jobs:
            wire.check(job)
        return _Batch(self, jobs, on_verdict).run()

    def results(self, jobs: Sequence[ReferenceJob]) -> list[ReferenceResults]:
        """Run reference solutions on inputs, isolated like any program, and return their results."""
        for job in jobs:
            wire.check(job)
        return [_reference(verdict) for verdict in _Batch(self, jobs, None).run()]


def _reference(verdict: Verdict) -> ReferenceResults:
    results, errors = [], {}
    for number, reply in enumerate(verdict.outputs):
        value = reply.get("result") if isinstance(reply, dict) else None
        opaque = codec.has_opaque(value)
        if not isinstance(reply, dict) or "result" not in reply:
            raised = reply.get("raised") if isinstance(reply, dict) else None
            said = raised[:2] if isinstance(raised, list) else ["no answer"]
            errors[number] = wire.one_line(": ".join(part for part in said if isinstance(part, str)))[:300]
        elif opaque:
            errors[number] = f"no plain data: {opaque}"
        results.append(None if number in errors else value)
    return ReferenceResults(tuple(results), errors, verdict)


class _Batch:
    """One call of `run`."""

    def __init__(self, sandbox: Sandbox, jobs: Sequence[wire.AnyJob], on_verdict: OnVerdict | None) -> None:
        self.sandbox, self.jobs, self.on_verdict = sandbox, jobs, on_verdict
        self.verdicts: list[Verdict | None] = [None] * len(jobs)
        self.waiting = deque(range(len(jobs)))
        self.attempts = [0] * len(jobs)
        self.left = len(jobs)
        self.failed_starts = 0

    def run(self) -> list[Verdict]:
        with self.sandbox._lock:
            if self.sandbox._team.owner != os.getpid():
                self.sandbox._renew()
            try:
                while self.left:
                    self._hire()
                    self._deal()
                    self._turn()
            except BaseException:  # boundary: interrupted; what runs is of no use to anybody
                for worker in [w for w in self._workers if w.job is not None]:
                    self._dismiss(worker)
                raise
        return [verdict for verdict in self.verdicts if verdict is not None]

    @property
    def _workers(self) -> list[Worker]:
        return self.sandbox._team.workers

    def _hire(self) -> None:
        box = self.sandbox
        while len(self._workers) < min(box._size, self.left):
            worker = box._team.starter.submit(Worker, box._plan, box._space_mb, box._preload).result()
            self._workers.append(worker)

    def _deal(self) -> None:
        for worker in [w for w in self._workers if w.ready and w.job is None]:
            if not self.waiting:
                return
            number = self.waiting.popleft()
            job, limits = self.jobs[number], self.sandbox.limits
            self.attempts[number] += 1
            try:
                worker.give(number, wire.encode(job, limits), wire.patience_s(job, limits))
            except Broken:
                self._lost(worker)

    def _turn(self) -> None:
        """Wait for something to happen and handle it."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.sending else 0)
                selector.register(worker, events, worker)
            waits = [w.deadline for w in self._workers if w.job is not None or not w.ready]
            patience = max(0.0, min(waits, default=time.monotonic() + 1.0) - time.monotonic())
            ready = selector.select(min(patience, 60.0))
        now = time.monotonic()  # what arrives while this turn is busy, say ending a worker, is not late
        for key, events in ready:
            worker = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    worker.flush()
                if events & selectors.EVENT_READ:
                    self._hear(worker)
            except (Broken, codec.Malformed):
                self._lost(worker)
        self._late(now)

    def _hear(self, worker: Worker) -> None:
        try:
            worker.read()
        finally:
            self._understand(worker)

    def _understand(self, worker: Worker) -> None:
        first = worker.take()
        if first is None:
            return
        if not worker.ready:
            worker.welcome()
            self.failed_starts = 0
            return
        if worker.job is None:
            raise Broken("spoke without being asked")
        verdict, parts = wire.decode(first[0])
        outputs = self._outputs(worker, parts)
        job = self.jobs[worker.job]
        if outputs:
            verdict = Verdict(**{**vars(verdict), "outputs": wire.outputs(job, outputs)})
        number, worker.job = worker.job, None
        worker.jobs_done += 1
        self._settle(number, verdict)

    def _outputs(self, worker: Worker, parts: int) -> list[bytes]:
        """The frames that follow a verdict; they are on their way, so wait for them."""
        limit = time.monotonic() + 60.0
        while (found := worker.take(parts)) is None:
            if time.monotonic() > limit:
                raise Broken("outputs did not arrive")
            with selectors.DefaultSelector() as selector:
                selector.register(worker, selectors.EVENT_READ)
                selector.select(1.0)
            worker.read()
        return found

    def _settle(self, number: int, verdict: Verdict) -> None:
        self.verdicts[number] = verdict
        self.left -= 1
        if self.on_verdict is not None:
            self.on_verdict(number, verdict)

    def _late(self, now: float) -> None:
        for worker in [w for w in self._workers if (w.job is not None or not w.ready) and now > w.deadline]:
            if worker.job is None:
                self._lost(worker)
                continue
            number, wall = worker.job, worker.patience_s
            self._dismiss(worker)
            detail = "the program blocked its judge past the wall limit"
            self._settle(number, Verdict(Status.TIMEOUT, detail, wall_s=wall, wall_timeout=True))

    def _lost(self, worker: Worker) -> None:
        """A worker died: try its job once more elsewhere, or give it up."""
        number, ready, complaint = worker.job, worker.ready, worker.complaint()
        self._dismiss(worker)
        if not ready:
            self.failed_starts += 1
            if self.failed_starts >= _FAILED_STARTS:
                level, why = self.sandbox._plan.level, self.sandbox._plan.explanation
                raise RunFailed(f"Sandbox workers do not start ({level}: {why}). Last message: {complaint}")
        elif number is not None and (self.attempts[number] < _ATTEMPTS or worker.jobs_done):
            # A worker that ran other programs may have been worn out by one of those.
            self.waiting.appendleft(number)
        elif number is not None:
            self._settle(number, Verdict(Status.ERROR, f"the worker died {self.attempts[number]} times ({complaint})"))

    def _dismiss(self, worker: Worker) -> None:
        worker.job = None
        self._workers.remove(worker)
        worker.end(grace_s=0.0)
