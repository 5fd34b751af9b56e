#!/usr/bin/env python
"""What it takes to bring one model into several processes: only the first reads it (onpol's way), or each does.

    python scripts/bench/loading.py [--size 0.6b] [--nproc 4] [--out FILE]

Random float32 weights of Qwen3's shape in a folder of their own; N processes on the CPU (gloo) load and shard them
with FSDP2, one way after the other. Memory is the largest sum of the processes' proportional set sizes (what they
share counts once), looked at twenty times a second; seconds run from the first process group to the last shard.
`norm` is over the shards of all processes, so that both ways must agree in it. Linux only. Ends with one JSON object
whose ratios are each / first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from facts import tell

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
WAYS = ("first", "each")


def load(way: str, folder: Path) -> None:
    """One process: join, load, shard; rank 0 writes what it saw to `<folder>/<way>.json`."""
    import torch
    from torch import distributed
    from torch.distributed import fsdp  # noqa: F401  # imports are not what is measured
    from transformers import Qwen3ForCausalLM  # noqa: F401

    from onpol_cli.core.config import Config
    from onpol_cli.learner.model import load_model
    from onpol_cli.learner.parallel import ALONE, end_process, join_world, leave_world, shard

    config = Config()
    config.model.path = str(folder)
    config.parallel.nproc, config.parallel.backend = int(os.environ["WORLD_SIZE"]), "gloo"
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    world = join_world(config.parallel, cpu)
    distributed.barrier()
    began = time.perf_counter()
    model = load_model(config.model, 0, world if way == "first" else ALONE)
    shard(model, config.learner, cpu)
    distributed.barrier()
    seconds = time.perf_counter() - began
    squares = sum(float(part.detach().to_local().double().square().sum()) for part in model.parameters())
    norm = sum(world.gather(squares)) ** 0.5
    if world.rank == 0:
        (folder / f"{way}.json").write_text(json.dumps({"seconds": seconds, "norm": norm}))
    leave_world()
    end_process(0)


def proportional(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def measure(way: str, nproc: int, folder: Path) -> dict[str, Any]:
    """Seconds, norm and peak GiB of one way."""
    from onpol_cli.core.processes import descendants

    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", __file__]
    process = subprocess.Popen([*words, "--one", way, str(folder)], stdout=sys.stderr)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(proportional, descendants(process.pid))))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"loading ({way}) ended with status {process.returncode}")
    return {"peak_gib": peak / 2**30, **json.loads((folder / f"{way}.json").read_text())}


def write_weights(size: str, folder: Path) -> None:
    """Random float32 weights of Qwen3 `size` into `folder`."""
    import torch
    from gpu_parts.common import random_model

    random_model(size, torch.float32, torch.device("cpu")).save_pretrained(folder)


def main() -> None:
    """Measure both ways and write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["0.6b", "4b", "small"], default="0.6b")
    parser.add_argument("--nproc", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        act, folder = options.one[0], Path(options.one[1])
        write_weights(options.size, folder) if act == "write" else load(act, folder)
        return
    with TemporaryDirectory(prefix="onpol-loading-") as name:
        folder = Path(name)
        write = [sys.executable, __file__, "--size", options.size, "--one", "write", name]
        subprocess.run(write, stdout=sys.stderr, check=True)  # its memory ends with it
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
        found = {way: measure(way, options.nproc, folder) for way in WAYS}
    ratios = {key: found["each"][key] / found["first"][key] for key in ("peak_gib", "seconds")}
    facts = {"bench": "loading", "size": options.size, "nproc": options.nproc, "weights_gib": weights}
    tell({**facts, "ways": found, "ratios": ratios}, options.out)


if __name__ == "__main__":
    main()
