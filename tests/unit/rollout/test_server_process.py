"""Local servers end with the process that started them, however it ends; a stand-in serves for vLLM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, sys, threading, time
from pathlib import Path
from onpol_cli.core.config import RolloutConfig
from onpol_cli.rollout import server_process

server_process.require_vllm = lambda *_: None
server_process.entry_point = lambda: [sys.executable, "-c", "import time; time.sleep(600)"]
way, made = sys.argv[1], []

def start():
    made.append(server_process.LocalServer(Path("model"), RolloutConfig(), 64, 0, "stand-in"))

if way == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(1)
    assert made[0].process.poll() is None, "the server lives on when the thread that started it has ended"
    made[0].stop()
    print("stopped", made[0].process.returncode)
else:
    start()
    print(made[0].pid, flush=True)
    if way == "leaves":
        threading.Timer(1, os._exit, (1,)).start()
    time.sleep(600)
"""


def parent(way: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen([sys.executable, "-c", PARENT, way], stdout=subprocess.PIPE, text=True, env=environment)


def lives(pid: int) -> bool:
    """Whether the process is there and is no zombie that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told by Linux")
@pytest.mark.parametrize("way", ["killed", "leaves"])
def test_a_server_does_not_outlive_the_process_that_started_it(way: str, tmp_path: Path) -> None:
    with parent(way, tmp_path) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert lives(server)
        try:
            if way == "killed":
                process.kill()
            process.wait(60)
            end = time.monotonic() + 20
            while lives(server) and time.monotonic() < end:
                time.sleep(0.05)
            assert not lives(server)
        finally:
            if lives(server):
                os.kill(server, signal.SIGKILL)


def test_a_server_outlives_a_thread_that_started_it(tmp_path: Path) -> None:
    with parent("thread", tmp_path) as process:
        assert process.communicate(timeout=120)[0] == f"stopped {-signal.SIGTERM}\n"
