"""Run under torchrun by test_parallel: trains on recorded examples and writes the loss curve. Not a test itself."""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from onpol_cli.core.compose import compose
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import load_model, load_tokenizer
from onpol_cli.learner.parallel import whole


def recorded(case: str, count: int, learner: Learner) -> list[TrainExample]:
    """The same examples in every process: random ids and streams from one seed, as if the policy had sampled them."""
    generator = torch.Generator().manual_seed(5)

    def draw() -> list[int]:
        size = int(torch.randint(4, 30, (1,), generator=generator))
        return torch.randint(3, 700, (size,), generator=generator).tolist()

    pairs = [(draw(), draw()) for _ in range(count)]
    if case == "sft":
        return [TrainExample(*pair, ce_weights=torch.ones(len(pair[1]))) for pair in pairs]
    return [
        policy_example(case, pair, row, generator) for pair, row in zip(pairs, learner.logprobs(pairs), strict=True)
    ]


def policy_example(
    case: str, pair: tuple[list[int], list[int]], policy: Tensor, generator: torch.Generator
) -> TrainExample:
    """A rollout: sampler close to the policy, a teacher that disagrees (opd) or an advantage per token (rl)."""
    size = len(pair[1])
    noise = torch.rand(size, generator=generator) - 0.5
    return TrainExample(
        *pair,
        pg_mask=torch.ones(size),
        advantages=noise if case == "rl" else torch.zeros(size),
        sampler_logprobs=policy + 0.1 * noise,
        teacher_logprobs=policy + noise if case == "opd" else None,
        teacher_coef=1.0 if case == "opd" else 0.0,
    )


def main(case: str, out: Path, steps: int, nproc: int, dtype: str) -> None:
    """Train `steps` steps of 12 examples in `dtype`; rank 0 writes losses and the norm of all weights."""
    method, _, lora = case.partition("-")
    words = [f"parallel.nproc={nproc}", "optim.lr=1e-4", "learner.threads=1", "learner.micro_tokens=256"]
    words += ["model.lora.rank=4"] if lora else []
    # one process would take the native decoder; transformers' norms round to float32 in any format, its own do not
    words += ["learner.native=false"] if dtype == "float64" else []
    config = compose([*words, "model.device=cpu"])
    model, tokenizer = load_model(config.model, 0), load_tokenizer(config.model.path)
    learner = Learner(model.to(getattr(torch, dtype)), tokenizer, config, steps, torch.device("cpu"))
    examples = recorded(method, 12, learner)
    losses = [learner.step(learner.world.share(examples))["loss/total"] for _ in range(steps)]
    norm = sum(float(whole(value).float().square().sum()) for _, value in learner.named_weights()) ** 0.5
    if learner.world.rank == 0:
        out.write_text(json.dumps({"losses": losses, "norm": norm}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
