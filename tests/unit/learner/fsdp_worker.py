"""Trains small models under torchrun (or alone) and writes the loss curves: `fsdp_worker.py FOLDER SIZE [CASE...]`.

With the one case `too-long`, each process writes instead what steps of too long sequences end with, with
`base-first` the first losses of a model that was scored with its adapters off before anything else.

Run by `test_learner_fsdp.py`; not a test itself.
"""

import json
import sys
from pathlib import Path

import torch
from learner_cases import CPU, VOCAB, make_config, make_examples, make_model

from onpol_cli.core.config import Dtype, LoraConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.batch import units
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import add_adapters
from onpol_cli.learner.parallel import end_process, leave_world
from onpol_cli.learner.scorer import BaseScorer

CASES = [(kind, lora) for kind in ("sft", "pg", "div", "dpo") for lora in (False, True)]
STEPS = 20


def build(kind, lora, size, autocast=Dtype.float32):
    config = make_config(kind)
    config.learner.autocast = autocast
    config.optim.lr, config.parallel.nproc, config.learner.micro_tokens = 1e-3, size, 60
    config.learner.native = False
    model = make_model(dtype=torch.float32, tied=kind != "div")
    if lora:
        add_adapters(model, LoraConfig(rank=2), 0)
    head = torch.randn(VOCAB + 5, 16, generator=torch.Generator().manual_seed(99))
    return Learner(model, VOCAB, config, STEPS, CPU, head)


def own_share(learner, examples):
    return [examples[index] for unit in learner.world.share(units(examples)) for index in unit]


def curve(learner, kind, first, last):
    losses = []
    for step in range(first, last):
        metrics = learner.step(own_share(learner, make_examples(kind, count=10, seed=step)))
        losses.append([metrics["loss/total"], metrics["grad_norm"], metrics["tokens/trained"]])
    return losses


def too_long(folder, size):
    learner = build("sft", False, size)
    examples = make_examples("sft", count=4)
    told = []
    lengths = sorted(len(example) for example in examples)
    for limit in (lengths[0], lengths[0] - 1, lengths[-1]):  # one sequence fits, none, all
        learner.config.model.max_context = limit
        try:
            metrics = learner.step(own_share(learner, examples))
        except OnpolError as error:
            told.append(str(error))
        else:
            told.append([metrics["tokens/dropped_sequences"], learner.steps_done])
    (folder / f"told-{learner.world.rank}.json").write_text(json.dumps(told))
    leave_world()


def base_first(folder, size):
    """Preferences, whose reference is the base under the adapters: nothing else has run the model yet."""
    learner = build("dpo", True, size, Dtype.bfloat16)
    scores = BaseScorer(learner.engine).logprobs([(e.prompt_ids, e.completion_ids) for e in make_examples("dpo")])
    losses = [loss for loss, *_ in curve(learner, "dpo", 0, 3)]
    if learner.world.rank == 0:
        told = {"losses": losses, "base": float(torch.cat(scores).mean())}
        (folder / f"base-first-{size}.json").write_text(json.dumps(told))
    leave_world()


def main(folder, size, only=()):
    result = {}
    for kind, lora in CASES:
        name = f"{kind}-{'lora' if lora else 'full'}"
        if only and name not in only:
            continue
        learner = build(kind, lora, size)
        saved = folder / f"{name}-half.pt"
        first = 0
        if saved.exists():  # written by a run with another number of processes
            learner.load_state_dict(torch.load(saved))
            first = STEPS // 2
        losses = curve(learner, kind, first, STEPS // 2) if first == 0 else []
        state = learner.state_dict(keep=learner.world.rank == 0)
        if learner.world.rank == 0 and first == 0:
            torch.save(state, folder / f"{name}-half.pt")
        losses += curve(learner, kind, STEPS // 2, STEPS)
        learner.save_pretrained(folder / f"{name}-{size}")
        pairs = [(e.prompt_ids, e.completion_ids) for e in make_examples(kind, seed=77)]
        scores = torch.cat(learner.logprobs(pairs[learner.world.rank :])).tolist()[-3:]
        learner.save_pretrained(folder / f"{name}-{size}-scored")  # while the ends are still gathered
        result[name] = {"losses": losses, "scores": scores}
        rank = learner.world.rank
    if rank == 0:
        (folder / f"curves-{size}.json").write_text(json.dumps(result))
    leave_world()


if __name__ == "__main__":
    if sys.argv[3:] == ["too-long"]:
        too_long(Path(sys.argv[1]), int(sys.argv[2]))
    elif sys.argv[3:] == ["base-first"]:
        base_first(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    end_process(0)
