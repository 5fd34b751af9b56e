"""Fixtures of the engine tests: toy models, and the records of what each engine did."""

import os
from importlib.util import find_spec

import pytest
from needed import missing
from vllm_toys import clean_environment, exercise, inprocess, load_toy, write_toy

from onpol_cli.core.config import Engine, RolloutConfig
from onpol_cli.learner.model import resolve_model_path
from onpol_cli.rollout.engine import build_engine


@pytest.fixture(scope="session")
def vllm_here():
    """vLLM is installed; in CI its absence is a failure, elsewhere a skip."""
    if find_spec("vllm") is None:
        missing("vllm is not installed (scripts/test installs the build for machines without a GPU)")


@pytest.fixture(scope="session", name="clean_environment")
def environment_of_children():
    """`vllm_toys.clean_environment`, taken once."""
    return clean_environment()


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
def inprocess_record(vllm_here, real_toy, small_toy, tmp_path_factory):
    """What vLLM in process did, in a process of its own."""
    return inprocess(real_toy, small_toy, tmp_path_factory.mktemp("record") / "record.json")


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
