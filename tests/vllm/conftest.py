"""Fixtures of the engine tests: toy models, and the records of what each engine did."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from needed import missing
from vllm_toys import exercise, load_toy, write_toy

from onpol_cli.core.config import Engine, RolloutConfig
from onpol_cli.learner.model import resolve_model_path
from onpol_cli.rollout.engine import build_engine

HERE = Path(__file__).parent
WORKER_SECONDS = 900


@pytest.fixture(scope="session")
def vllm_here():
    """vLLM is installed; in CI its absence is a failure, elsewhere a skip."""
    if find_spec("vllm") is None:
        missing("vllm is not installed (scripts/test installs the build for machines without a GPU)")


@pytest.fixture(scope="session")
def clean_environment():
    """A child's environment without vLLM's variables, whatever the caller or other tests have set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VLLM_") and name != "LD_PRELOAD"}


@pytest.fixture(scope="session")
def real_toy(tmp_path_factory):
    """Random weights with the real Qwen3 vocabulary: 151,669 tokens in 151,936 rows."""
    return write_toy(tmp_path_factory.mktemp("real"), real=True)


@pytest.fixture(scope="session")
def small_toy(tmp_path_factory):
    """Random weights with 600 tokens in 640 rows."""
    return write_toy(tmp_path_factory.mktemp("small"), real=False)


@pytest.fixture(scope="session")
def hf_record(real_toy):
    """What the embedded engine did."""
    model, tokenizer = load_toy(real_toy)
    with build_engine(RolloutConfig(max_batch=8), str(real_toy), tokenizer, 0, "cpu", model) as engine:
        return exercise(engine, model, tokenizer)


@pytest.fixture(scope="session")
def hf_tiny_record():
    """What the embedded engine did with the trained model that ships with the package."""
    model, tokenizer = load_toy(resolve_model_path("tiny"))
    with build_engine(RolloutConfig(max_batch=8), "", tokenizer, 0, "cpu", model) as engine:
        return exercise(engine, model, tokenizer)


@pytest.fixture(scope="session")
def inprocess_record(vllm_here, clean_environment, real_toy, small_toy, tmp_path_factory):
    """What vLLM in process did, in a process of its own."""
    out = tmp_path_factory.mktemp("record") / "record.json"
    command = [sys.executable, str(HERE / "inprocess_worker.py"), str(real_toy), str(small_toy), str(out)]
    done = subprocess.run(command, env=clean_environment, capture_output=True, text=True, timeout=WORKER_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()) | {"stdout": done.stdout}


@pytest.fixture(scope="session")
def two_servers(vllm_here, real_toy):
    """An engine with two servers of its own on loopback, its model and tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("VLLM_")] + ["LD_PRELOAD"]:
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        model, tokenizer = load_toy(real_toy)
        config = RolloutConfig(engine=Engine.vllm_server, local_servers=2, max_batch=64, max_context=256)
        engine = build_engine(config, str(real_toy), tokenizer, 0, "cpu", model)
    with engine:
        yield engine, model, tokenizer


@pytest.fixture(scope="session")
def server_record(two_servers):
    """What the servers did."""
    return exercise(*two_servers)
