"""Other people's kernels: Liger's own, run by Triton's interpreter, against transformers' modules."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from learner_cases import CPU, make_config, make_learner, make_model
from needed import missing

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner import kernels

WORKER = Path(__file__).with_name("liger_worker.py")


@pytest.fixture
def liger_here():
    """Liger is installed; in CI its absence is a failure, elsewhere a skip."""
    if find_spec("liger_kernel") is None:
        missing("liger-kernel is not installed (scripts/test installs the extra `liger`)")


def test_ligers_kernels_give_the_same_loss_and_gradients(liger_here):
    words = [sys.executable, str(WORKER)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.strip().splitlines()[-1])
    assert record.pop("norms") > 0, "the kernels were never called"
    for case, found in record.items():
        assert found["liger"] == pytest.approx(found["plain"], rel=1e-5), case
        assert 0 < found["error"] < 1e-4, case  # equal to the bit would mean that nothing was replaced


def test_a_cpu_is_refused(liger_here, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = make_config()
    config.learner.liger = True
    with pytest.raises(OnpolError, match="need a GPU"):
        make_learner(config=config)


def test_an_unknown_architecture_is_refused(liger_here, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    model = make_model(dtype=torch.float32)
    model.config.model_type = "unheard-of"
    with pytest.raises(OnpolError, match="no kernels for models of type unheard-of"):
        kernels.use_liger(model, CPU)


def test_without_liger_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert "onpol[liger]" in kernels.liger_obstacle("cpu")


def test_cudnns_attention_is_switched_off_for_gpus_only():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        kernels.steady_attention(CPU)
        assert torch.backends.cuda.cudnn_sdp_enabled()
        kernels.steady_attention(torch.device("cuda", 0))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
