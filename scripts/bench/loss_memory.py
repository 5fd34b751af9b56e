#!/usr/bin/env python
"""Memory and time of token log-probs over a large vocabulary, forward and backward, side by side.

    python scripts/bench/loss_memory.py [--tokens 4096] [--hidden 1024] [--vocab 151936] [--threads 2]
        [--trl-python /folder/of/another/environment/bin/python]

Routes, each in a process of its own, with and without the entropy in the same pass:
`plain` (all logits, log_softmax, autograd), `checkpoint` (chunks under torch's checkpointing), `onpol`
(`learner.logprobs.token_logprobs`, what policy gradient and preference use), `onpol-sum`
(`weighted_nll`, what cross-entropy uses; no entropy), and with `--trl-python`, an interpreter that has TRL,
`trl` (its chunked log-probs at its own default chunk). The figure is the largest resident memory
during forward and backward above inputs *and their gradients*. Gradients are compared with those of `plain`:
`|g - g_plain| / |g_plain|` (Frobenius norms) of the hidden states' whole gradient and of every 16th row of the
weight's. Ends with one JSON object, whose ratios are each route / `plain`; `--out` also writes it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facts import tell

ROUTES = ("plain", "checkpoint", "onpol", "onpol-sum")
PEER, PEER_CHUNK = "trl", 32768
MIB = 2**20
SAMPLED_ROWS = 16


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Set VmHWM back to the present resident size."""
    Path("/proc/self/clear_refs").write_text("5")


def route(name: str, entropy: bool, chunk: int) -> Callable[..., Any]:
    """Log-probs `[N]` and entropies `[N]` (or None) by one route."""
    import torch
    from torch.utils.checkpoint import checkpoint

    if name == PEER:
        return peer(entropy)

    from onpol_cli.learner.head import HeadOptions
    from onpol_cli.learner.logprobs import token_logprobs, token_logprobs_entropy, weighted_nll

    def plain(hidden: Any, weight: Any, targets: Any) -> Any:
        logp = (hidden @ weight.T).log_softmax(1)
        picked = logp.gather(1, targets[:, None])[:, 0]
        return picked, -(logp.exp() * logp).sum(1) if entropy else None

    def checkpointed(hidden: Any, weight: Any, targets: Any) -> Any:
        parts = [
            checkpoint(plain, h, weight, t, use_reentrant=False)
            for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts]) if entropy else None

    def ours(hidden: Any, weight: Any, targets: Any) -> Any:
        options = HeadOptions(len(weight), chunk)
        if entropy:
            return token_logprobs_entropy(hidden, weight, targets, options, entropy_grad=True)
        return token_logprobs(hidden, weight, targets, options), None

    def summed(hidden: Any, weight: Any, targets: Any) -> Any:
        share = torch.full((len(hidden),), -1.0 / len(hidden))
        return weighted_nll(hidden, weight, targets, share, HeadOptions(len(weight), chunk))[0], None

    return {"plain": plain, "checkpoint": checkpointed, "onpol": ours, "onpol-sum": summed}[name]


def peer(entropy: bool) -> Callable[..., Any]:
    """TRL's chunked log-probs, as its trainers call them."""
    from trl.kernels import ChunkedLogProbFunction

    outputs = ("entropy",) if entropy else ()

    def compute(hidden: Any, weight: Any, targets: Any) -> Any:
        return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, PEER_CHUNK, None, 1.0, outputs)[:2]

    return compute


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One forward and backward in this process."""
    import torch

    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, generator=generator).requires_grad_()
    weight = torch.randn(args.vocab, args.hidden, generator=generator).mul_(args.hidden**-0.5).requires_grad_()
    targets = torch.randint(0, args.vocab, (args.tokens,), generator=generator)
    compute = route(args.route, args.entropy, args.chunk)
    warm = [hidden[:8].detach().requires_grad_(), weight[:512].detach().clone().requires_grad_()]
    compute(*warm, targets[:8] % 512)[0].sum().backward()
    before = resident("VmRSS")
    forget_peak()
    start, used = time.perf_counter(), time.process_time()
    logprobs, entropy = compute(hidden, weight, targets)
    loss = logprobs.mean() if entropy is None else logprobs.mean() + 0.1 * entropy.mean()
    loss.backward()
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = resident("VmHWM") - before
    gradients = sum(t.numel() * t.element_size() for t in (hidden, weight))
    assert hidden.grad is not None and weight.grad is not None
    torch.save((hidden.grad, weight.grad[::SAMPLED_ROWS].clone()), args.gradients)
    return {
        "route": args.route, "entropy": args.entropy, "peak_mib": peak / MIB, "loss": float(loss.detach()),
        "above_gradients_mib": (peak - gradients) / MIB, "seconds": seconds, "cpu_seconds": cpu,
    }  # fmt: skip


def run(name: str, entropy: bool, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`measure` in a fresh process; its gradients go to `folder`."""
    python = args.trl_python if name == PEER else sys.executable
    words = [python, __file__, "--route", name, "--threads", str(args.threads), "--chunk", str(args.chunk)]
    words += ["--gradients", str(folder / name)]
    words += ["--tokens", str(args.tokens), "--hidden", str(args.hidden), "--vocab", str(args.vocab)]
    done = subprocess.run(
        words + (["--entropy"] if entropy else []), capture_output=True, text=True, check=True, env=None
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{name:<11} entropy={entropy!s:<5} {found['above_gradients_mib']:9.0f} MiB above gradients "
          f"{found['seconds']:7.1f} s ({found['cpu_seconds']:.1f} s CPU)", file=sys.stderr)  # fmt: skip
    return found


def errors(folder: Path, name: str) -> list[float]:
    """Relative differences of a route's gradients (hidden states, weight) from those of `plain`."""
    import torch

    pairs = zip(torch.load(folder / name), torch.load(folder / "plain"), strict=True)
    return [float((own.double() - plain.double()).norm() / plain.double().norm()) for own, plain in pairs]


def compare(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Ratios of each route to `plain`."""
    plain = next(row for row in rows if row["route"] == "plain")
    result = {}
    for row in rows:
        result[row["route"]] = {
            "memory_ratio": row["above_gradients_mib"] / plain["above_gradients_mib"],
            "time_ratio": row["seconds"] / plain["seconds"],
            "cpu_time_ratio": row["cpu_seconds"] / plain["cpu_seconds"],
            "gradient_error": dict(zip(("hidden", "weight"), errors(folder, row["route"]), strict=True)),
        }
    return result


def main() -> None:
    """Measure all routes and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trl-python")
    parser.add_argument("--route", choices=[*ROUTES, PEER], help=argparse.SUPPRESS)
    parser.add_argument("--entropy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.route:
        print(json.dumps(measure(args)))
        return
    sizes = {"tokens": args.tokens, "hidden": args.hidden, "vocab": args.vocab, "chunk": args.chunk}
    result: dict[str, Any] = {"bench": "loss_memory", **sizes, "ratios": {}}
    for entropy in (False, True):
        names = [name for name in ROUTES if not (entropy and name == "onpol-sum")]
        key = "with_entropy" if entropy else "log_probs_only"
        with tempfile.TemporaryDirectory() as folder:
            rows = [run(name, entropy, args, Path(folder)) for name in (*names, *([PEER] if args.trl_python else []))]
            result[key] = {"raw": rows}
            result["ratios"][key] = compare(rows, Path(folder))
    tell(result, args.out)


if __name__ == "__main__":
    main()
