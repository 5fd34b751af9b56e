"""Workers: isolation, death, interruption, and nothing left when the parent is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onpol_cli.core.config import SandboxConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.sandbox import CallJob, Sandbox, Status, isolation_level
from onpol_cli.sandbox.worker import Worker

CONFIG = SandboxConfig(workers=1, cpu_s=20.0, wall_s=100.0)
GOOD = CallJob(source="def f(x): return x", entry_point="f", calls=((1,),), expected=(1,))
HAS_BUBBLEWRAP = isolation_level(CONFIG)[0] == "bubblewrap"
isolated = pytest.mark.skipif(not HAS_BUBBLEWRAP, reason="bubblewrap does not work here")


def settles(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def children_of(pids: set[int]) -> set[int]:
    """`pids` and everything below them."""
    found = set(pids)
    while True:
        more = set()
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                parent = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            if parent in found and int(name) not in found:
                more.add(int(name))
        if not more:
            return found
        found |= more


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def answer_of(source: str, config: SandboxConfig = CONFIG) -> object:
    """What `f()` of `source` returns inside the sandbox."""
    job = CallJob(source=source, entry_point="f", calls=((),), expected=(None,), keep_output=True)
    with Sandbox(config) as sandbox:
        verdict = sandbox.run([job])[0]
    assert verdict.outputs, verdict
    return verdict.outputs[0]


def test_environment_of_the_parent_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONPOL_TEST_SECRET", "open-sesame")
    source = """
import glob, os
def f():
    text = repr(dict(os.environ))
    for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
        try: text += open(path, 'rb').read().decode(errors='replace')
        except OSError: pass
    return text"""
    text = answer_of(source)
    assert "PATH" in str(text)
    assert "open-sesame" not in str(text)


@isolated
def test_no_network_and_no_other_processes() -> None:
    source = """
import os, socket
def f():
    found = []
    for address in (('1.1.1.1', 53), ('127.0.0.1', %d)):
        try:
            socket.create_connection(address, timeout=2)
            found.append(address)
        except OSError: pass
    try: found.append(socket.getaddrinfo('example.com', 80))
    except OSError: pass
    interfaces = [name for _, name in socket.if_nameindex()]
    return found, interfaces, len([name for name in os.listdir('/proc') if name.isdigit()])"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert answer_of(source % server.getsockname()[1]) == ([], ["lo"], 2)


@isolated
def test_only_private_places_are_writable(tmp_path: Path) -> None:
    source = """
import os
def f():
    written = []
    places = [%r, os.path.dirname(os.__file__)]
    for place in places + '/ /usr /etc /dev /home /root /var/tmp /proc /sys'.split():
        try:
            with open(place + '/onpol-hostile-written', 'w') as file: file.write('x')
            written.append(place)
        except OSError: pass
    return written"""
    assert answer_of(source % str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


@isolated
def test_files_of_the_user_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("open-sesame")
    secret.chmod(0o644)
    source = """
import os
def f():
    found = []
    for path in (%r, os.path.expanduser('~%s'), '/etc/shadow', '/root/.bashrc', '/home'):
        try: found.append(open(path).read())
        except OSError: pass
    return found"""
    assert answer_of(source % (str(secret), os.environ.get("USER", "root"))) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_programs_of_root_are_not_root() -> None:
    user, groups = answer_of("import os\ndef f(): return os.getuid(), os.getgroups()")  # type: ignore[misc]
    assert user != 0
    assert groups == []


def test_programs_cannot_tune_their_zygote() -> None:
    source = """
import os, resource, signal
def f():
    parent, done = os.getppid() or 1, []
    for name, change in {
        'limits': lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, (20, 20)),
        'priority': lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
        'priority of all': lambda: os.setpriority(os.PRIO_USER, 0, 19),
        'cores': lambda: os.sched_setaffinity(parent, {0}),
        'scheduler': lambda: os.sched_setscheduler(parent, os.SCHED_IDLE, os.sched_param(0)),
    }.items():
        try: change()
        except PermissionError: continue
        done.append(name)
    os.nice(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    return done"""
    assert answer_of(source) == []


@pytest.mark.usefixtures("without_bubblewrap")
def test_without_bubblewrap_the_zygote_cannot_be_stopped() -> None:
    source = """
import os, signal
def f():
    done = []
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (os.getppid(), -1):
            try: os.kill(pid, number)
            except PermissionError: continue
            done.append(pid)
    return done"""
    assert answer_of(source) == []


@isolated
def test_limits_of_processes_and_descriptors_bind() -> None:
    source = """
import os
def f():
    children, files = 0, []
    try:
        while children < 200:
            if os.fork() == 0: os.read(os.pipe()[0], 1)
            children += 1
    except OSError: pass
    try:
        while len(files) < 500: files.append(open('/dev/null'))
    except OSError: pass
    return children, len(files)"""
    children, files = answer_of(source, SandboxConfig(workers=1, cpu_s=20, wall_s=100, processes=10, open_files=30))  # type: ignore[misc]
    assert 5 <= children <= 14
    assert 20 <= files <= 30


def test_dead_worker_is_replaced() -> None:
    with Sandbox(CONFIG) as sandbox:
        assert sandbox.run([GOOD])[0].passed
        for pid in children_of(set(sandbox._team.workers[0].pids)):
            with contextlib.suppress(ProcessLookupError):  # one takes the other along
                os.kill(pid, signal.SIGKILL)
        assert [verdict.passed for verdict in sandbox.run([GOOD] * 3)] == [True] * 3


def test_job_whose_worker_dies_twice_is_an_error() -> None:
    slow = CallJob(source="import time\ndef f(x): time.sleep(60)", entry_point="f", calls=((1,),), expected=(1,))
    with Sandbox(CONFIG) as sandbox:
        sandbox.run([GOOD])

        def killer() -> None:
            killed: list[Worker] = []
            while len(killed) < 2 and not done.wait(0.05):
                for worker in list(sandbox._team.workers):
                    if worker.job is not None and worker not in killed:
                        killed.append(worker)
                        for pid in children_of({worker.pids[1]}):  # the judge: it cannot say that others died
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)

        done = threading.Event()
        thread = threading.Thread(target=killer)
        thread.start()
        try:
            verdict = sandbox.run([slow])[0]
        finally:
            done.set()
            thread.join()
        assert verdict.status is Status.ERROR
        assert "died 2 times" in verdict.detail
        assert sandbox.run([GOOD])[0].passed


def test_closing_leaves_no_process() -> None:
    with Sandbox(CONFIG) as sandbox:
        sandbox.run([GOOD])
        pids = [pid for worker in sandbox._team.workers for pid in worker.pids]
        assert all(map(alive, pids))
    assert settles(lambda: not any(map(alive, pids)))
    assert sandbox.run([GOOD])[0].passed, "a closed sandbox starts again"
    sandbox.close()


def test_exception_of_the_caller_stops_the_batch() -> None:
    def stop(number: int, verdict: object) -> None:
        raise KeyboardInterrupt

    with Sandbox(CONFIG) as sandbox:
        with pytest.raises(KeyboardInterrupt):
            sandbox.run([GOOD] * 5, on_verdict=stop)
        assert sandbox.run([GOOD])[0].passed


def test_fork_of_the_parent_uses_workers_of_its_own() -> None:
    with Sandbox(CONFIG) as sandbox:
        sandbox.run([GOOD])
        pid = os.fork()
        if pid == 0:
            fine = False
            try:
                fine = sandbox.run([GOOD])[0].passed
                sandbox.close()
            finally:
                os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert sandbox.run([GOOD])[0].passed


PARENT = """
    import sys, threading
    from onpol_cli.core.config import SandboxConfig
    from onpol_cli.sandbox import CallJob, Sandbox
    SLOW = '''
    import os, time
    if os.fork() == 0: os.setsid()
    open("onpol-hostile", "w").close()
    def f(x): time.sleep(600)
    '''.replace("\\n    ", "\\n")
    box = Sandbox(SandboxConfig(workers=2, cpu_s=100, wall_s=600))
    slow = CallJob(source=SLOW, entry_point="f", calls=((1,),), expected=(1,))
    good = CallJob(source="def f(x): return x", entry_point="f", calls=((1,),), expected=(1,))
    def tell(number, verdict):
        pids = [pid for worker in box._team.workers for pid in worker.pids]
        print(*pids, *[s for w in box._team.workers for s in w._scratch], flush=True)
    if len(sys.argv) > 1:
        box.run([good])
        import os
        if os.fork() == 0:  # a process that holds copies of every descriptor of the parent
            import time
            time.sleep(20)
            os._exit(0)
    box.run([good, slow, slow, slow], on_verdict=tell)
"""


@pytest.mark.parametrize(
    ("number", "forked"), [(signal.SIGKILL, False), (signal.SIGINT, False), (signal.SIGKILL, True)]
)
def test_nothing_outlives_the_parent(number: signal.Signals, forked: bool) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(PARENT), *(["forked"] if forked else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        words = parent.stdout.readline().split()
        workers = {int(word) for word in words if word.isdigit()}
        assert len(workers) == 4
        time.sleep(0.3)  # let the slow programs get going
        family = children_of(workers)
        parent.send_signal(number)
        parent.stdout.close()
        assert settles(lambda: not any(map(alive, family))), [pid for pid in family if alive(pid)]
        parent.kill()
    assert not any(Path(word).exists() for word in words if not word.isdigit())


@pytest.mark.usefixtures("without_bubblewrap")
def test_falls_back_to_rlimits_and_says_so() -> None:
    level, why = isolation_level(CONFIG)
    assert level == "rlimits"
    assert "bubblewrap" in why
    assert "apt install" in why
    config = SandboxConfig(workers=1, cpu_s=0.5, wall_s=5.0)
    loop = CallJob(source="def f(x):\n    while True: pass", entry_point="f", calls=((1,),), expected=(1,))
    with Sandbox(config) as sandbox:
        assert sandbox.isolation == "rlimits"
        verdicts = sandbox.run([GOOD, loop])
        folders = [folder for worker in sandbox._team.workers for folder in worker._scratch]
    assert [verdict.status for verdict in verdicts] == [Status.PASSED, Status.TIMEOUT]
    assert folders
    assert not any(Path(folder).exists() for folder in folders)


@pytest.mark.usefixtures("without_bubblewrap")
def test_without_bubblewrap_orphans_are_killed_too() -> None:
    source = """
import os
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import time
            while True: time.sleep(1)
        os._exit(0)
    os.wait()
    return os.getpid()"""
    job = CallJob(source=source, entry_point="f", calls=((),), expected=(None,), keep_output=True)
    with Sandbox(CONFIG) as sandbox:
        sandbox.run([job])
        workers = {pid for worker in sandbox._team.workers for pid in worker.pids}
        assert settles(lambda: children_of(workers) == workers)


@pytest.mark.usefixtures("without_bubblewrap")
def test_isolation_can_be_required() -> None:
    with pytest.raises(OnpolError, match=r"require_isolation=true.*install bubblewrap"):
        Sandbox(SandboxConfig(require_isolation=True))
