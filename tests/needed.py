"""What a test does without something that it needs, and how long it waits for what must come."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """A failure in CI, where everything must be there; a skip with `reason` elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 900) -> None:
    """Until `condition()`; the process, whose stderr is a pipe, must live meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"it ended with code {process.returncode}: {process.communicate()[1][-3000:]}")
        if time.monotonic() > end:
            pytest.fail(f"nothing came in {seconds:.0f} s")
        time.sleep(0.02)
