"""What the machine can do: matrix products and copies, the yardsticks of everything else."""

from __future__ import annotations

from typing import Any

import torch

from gpu_parts.common import GIB, Found, Setting, best


def matmul_tflops(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """10^12 operations a second of a square product, best of several."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    many = max(1, int(4e12 / (2 * size**3))) if device.type == "cuda" else 1

    def work() -> None:
        for _ in range(many):
            torch.mm(left, right, out=out)

    return round(many * 2 * size**3 / best(work, device, repeats=10, limit=3.0) / 1e12, 4)


def facts(device: torch.device) -> dict[str, Any]:
    """Name, memory and software."""
    import transformers

    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device.type != "cuda":
        return found | {"name": "cpu", "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / GIB, 2),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def machine(setting: Setting) -> Found:
    """Facts, matmul peak in bf16 and float32, copy bandwidth (bytes read plus written)."""
    device = setting.place
    yield "facts", facts(device)
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        sizes = setting.pick((4096, 8192), (512, 1024))
        yield f"matmul_{name}_tflops", max(matmul_tflops(size, dtype, device) for size in sizes)
    source = torch.empty(setting.pick(2 * GIB, 2**26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = best(lambda: target.copy_(source), device, repeats=10, limit=3.0)
    yield "copy_gb_per_s", round(2 * source.numel() / taken / 1e9, 2)
