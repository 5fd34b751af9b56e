"""Run by test_parallel, not a test itself: records the examples of a real run, then trains on them in any number of
processes and writes the loss curve.

    python parallel_worker.py record CASE FOLDER STEPS
    torchrun ... parallel_worker.py replay CASE FOLDER STEPS NPROC DTYPE
"""

import json
import sys
from pathlib import Path

import torch

from onpol_cli.core.compose import compose
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import load_model, load_tokenizer
from onpol_cli.learner.parallel import end_process, leave_world, whole
from onpol_cli.stages.train import train_model

LORA_RATE = 1e-3
SMALL = (
    *("method.epochs=0", "method.batch=12", "method.prompts=4", "method.group=4", "rollout.sampling.max_new_tokens=64"),
    *("task.problems=64", "learner.threads=1", "sandbox.workers=1", "model.device=cpu", "learner.micro_tokens=512"),
)


def words_of(case: str) -> list[str]:
    """Overrides that recording and replay share."""
    method, _, lora = case.partition("-")
    return [f"method={method}", *SMALL, *(("model.lora.rank=4", f"optim.lr={LORA_RATE}") if lora else ())]


def record(case: str, folder: Path, steps: int) -> None:
    """Run the method itself for `steps` steps; `CASE.pt` holds what the learner was given in each.

    OPD's tutor is the model that recording `sft` left in the folder.
    """
    given: list[list[TrainExample]] = []
    original = Learner.step

    def step(self: Learner, examples: list[TrainExample]) -> dict[str, float]:
        given.append(list(examples))
        return original(self, examples)

    Learner.step = step  # type: ignore[method-assign]
    own = [f"paths.runs={folder}", f"run.name={case}", f"method.steps={steps}"]
    own += [f"tutor={folder}/sft"] if case.startswith("opd") else []
    role = "student" if case.startswith("opd") else "tutor"
    train_model(compose([*words_of(case), *own]), role=role, command=["test"])
    torch.save(given, folder / f"{case}.pt")


def replay(case: str, folder: Path, steps: int, nproc: int, dtype: str) -> None:
    """Train in `dtype` on the recorded steps; rank 0 writes losses, gradient norms and the norm of all weights."""
    words = [*words_of(case), f"parallel.nproc={nproc}"]
    # one process would take the native decoder; transformers' norms round to float32 in any format, its own do not
    words += ["learner.native=false"] if dtype == "float64" else []
    config = compose(words)
    model, tokenizer = load_model(config.model, 0), load_tokenizer(config.model.path)
    learner = Learner(model.to(getattr(torch, dtype)), tokenizer, config, steps, torch.device("cpu"))
    given = torch.load(folder / f"{case}.pt", weights_only=False)
    assert len(given) == steps
    rows = [learner.step(learner.world.share(examples)) for examples in given]
    norm = sum(float(whole(value).float().square().sum()) for _, value in learner.named_weights()) ** 0.5
    if learner.world.rank == 0:
        curves = {name: [row[name] for row in rows] for name in ("loss/total", "grad_norm")}
        (folder / f"{case}-{dtype}-{nproc}.json").write_text(json.dumps(curves | {"norm": norm}))
    leave_world()
    end_process(0)


if __name__ == "__main__":
    act, name, place, count, *rest = sys.argv[1:]
    if act == "record":
        record(name, Path(place), int(count))
    else:
        replay(name, Path(place), int(count), int(rest[0]), rest[1])
