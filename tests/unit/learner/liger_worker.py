"""Run by test_kernels with TRITON_INTERPRET=1: one step with and without Liger's kernels. Not a test itself.

Prints JSON. Triton's interpreter knows neither plain floats as kernel arguments nor CUDA's `rsqrt`; both are
supplied here. The kernels themselves are Liger's.
"""

import json
import os

import numpy as np
import torch
import triton.language as tl
from learner_cases import gradient, make_config, make_examples, make_learner, make_model
from liger_kernel.ops import rms_norm
from liger_kernel.transformers.rms_norm import LigerRMSNormFunction
from triton.runtime import interpreter

from onpol_cli.core.config import LoraConfig
from onpol_cli.learner.model import add_adapters

convert = interpreter._implicit_cvt


def with_floats(value: object) -> object:
    if type(value) is not float:
        return convert(value)
    return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)


interpreter._implicit_cvt = with_floats
rms_norm.rsqrt = lambda value: 1 / tl.sqrt(value)
CASES = {"sft": ("sft", False), "pg-lora": ("pg", True)}


def step(case: str, liger: bool) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients by name and the loss of one step of `case`."""
    kind, lora = CASES[case]
    config = make_config(kind)
    config.learner.native, config.learner.liger = False, liger
    model = make_model(dtype=torch.float32)
    if lora:
        add_adapters(model, LoraConfig(rank=2), 0)
    learner = make_learner(kind, config=config, model=model, dtype=torch.float32)
    gradients, metrics = gradient(learner, make_examples(kind))
    return gradients, metrics["loss/total"]


def compare(plain: tuple[dict, float], fused: tuple[dict, float]) -> dict[str, float]:
    """Losses of both and the largest difference of a gradient, relative to the largest entry of its parameter."""
    (before, loss), (after, fused_loss) = plain, fused
    assert before.keys() == after.keys()
    errors = [(before[name] - after[name]).abs().max() / before[name].abs().max().clamp(min=1e-6) for name in before]
    return {"plain": loss, "liger": fused_loss, "error": float(max(errors))}


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "1"
    calls = []
    inner = LigerRMSNormFunction.forward
    LigerRMSNormFunction.forward = staticmethod(lambda *words: (calls.append(1), inner(*words))[1])
    without = {case: step(case, liger=False) for case in CASES}  # first: Liger stays for the rest of the process
    assert not calls
    record = {case: compare(without[case], step(case, liger=True)) for case in CASES}
    print(json.dumps(record | {"norms": len(calls)}))
