"""TRL's side, run by TRL's own interpreter: `peer.py '{"part": "distil", "work": FOLDER, ...}'`.

Trains with the stable `SFTTrainer` and `DistillationTrainer` (reverse KL, beta 1), every setting that the
other side shares given explicitly, and prints one JSON line: seconds by phase of each timed step, tokens,
and what the warm-up (where `torch.compile` compiles) took. Imports nothing of onpol.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from accelerate.optimizer import AcceleratedOptimizer
from clock import Clock
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer

NO_TOKEN = -1
"""An id that no text holds: with it as the end of sequence every completion has the full length."""


class Steps(TrainerCallback):
    """Forwards the ends of optimiser steps to a clock and notes when the warm-up was over."""

    def __init__(self, clock: Clock, warmup: int) -> None:
        self.clock, self.warmup, self.warmup_s, self.began = clock, warmup, 0.0, 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step <= self.warmup:
            self.warmup_s = time.perf_counter() - self.began
            self.clock.start()
        else:
            self.clock.step()


def arguments(job: dict[str, Any], folder: str, batch: int) -> dict[str, Any]:
    """What both trainers are told: the shared settings, and everything else that costs time switched off."""
    variant = job["variant"]
    return {
        "output_dir": folder, "max_steps": job["warmup"] + job["steps"], "seed": 0, "use_cpu": True,
        "per_device_train_batch_size": variant["micro"], "gradient_accumulation_steps": batch // variant["micro"],
        "learning_rate": job["lr"], "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "optim": "adamw_torch_fused",
        "bf16": job["dtype"] == "bfloat16", "gradient_checkpointing": False,
        "torch_compile": variant["compile"] == "option", "logging_strategy": "no", "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip


def load(job: dict[str, Any], name: str) -> Any:
    """`student` or `teacher` in float32 with the variant's attention."""
    variant = job["variant"]
    model = AutoModelForCausalLM.from_pretrained(
        Path(job["work"]) / name, dtype=torch.float32, attn_implementation=variant["attention"]
    )
    if variant["compile"] == "backbone":
        model.model.compile(dynamic=True)
    return model


def sft_trainer(job: dict[str, Any], work: dict[str, Any], folder: str) -> SFTTrainer:
    """Cross-entropy on the completions of tokenised examples, in the order given."""
    rows = work["rows"][: job["batch"] * (job["warmup"] + job["steps"])]
    data = Dataset.from_list(
        [
            {
                "input_ids": row["prompt"] + row["completion"],
                "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["completion"]),
            }
            for row in rows
        ]
    )
    args = SFTConfig(
        **arguments(job, folder, job["batch"]), max_length=None, completion_only_loss=True, shuffle_dataset=False,
        train_sampling_strategy=job["variant"]["order"],
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(Path(job["work"]) / "student")
    return SFTTrainer(load(job, "student"), args, train_dataset=data, processing_class=tokenizer)


def distillation_trainer(job: dict[str, Any], work: dict[str, Any], folder: str) -> DistillationTrainer:
    """Reverse KL over the whole vocabulary on completions of exactly `length` tokens."""
    steps = job["warmup"] + job["steps"]
    prompts = [row["text"] for row in work["rows"][: job["prompts"] * steps] for _ in range(job["group"])]
    args = DistillationConfig(
        **arguments(job, folder, job["prompts"] * job["group"]), beta=1.0, temperature=1.0, top_p=1.0, top_k=0,
        max_completion_length=job["length"], shuffle_dataset=False, disable_dropout=False,
        generation_kwargs={"eos_token_id": NO_TOKEN},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(Path(job["work"]) / "student", padding_side="left")
    trainer = DistillationTrainer(
        load(job, "student"), load(job, "teacher"), args, Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.eos_token_ids = [NO_TOKEN]
    return trainer


def run(job: dict[str, Any], work: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train, timed."""
    clock = Clock()
    distil = job["part"] == "distil"
    trainer = (distillation_trainer if distil else sft_trainer)(job, work, folder)
    counts: list[dict[str, int]] = []
    inner = trainer.training_step

    def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(model, inputs, *args, **kwargs)
        counts.append(tokens(trainer, inputs, distil))
        return loss

    trainer.training_step = counted
    clock.wrap(trainer, "training_step", "forward_backward")
    if distil:
        teacher = trainer.teacher_model
        clock.wrap(trainer, "_generate_and_score_completions", "generate")
        clock.wrap(
            trainer, "_get_last_hidden_state", lambda m, *_: "teacher" if m is teacher else "forward_backward"
        )
    clock.wrap(trainer.accelerator, "clip_grad_norm_", "optimiser")
    clock.wrap(AcceleratedOptimizer, "step", "optimiser")
    steps = Steps(clock, job["warmup"])
    trainer.add_callback(steps)
    trainer.train()
    per_step = len(counts) // (job["warmup"] + job["steps"])
    timed = counts[job["warmup"] * per_step :]
    return {
        "steps": clock.steps,
        "warmup_s": steps.warmup_s,
        "tokens": {name: sum(count[name] for count in timed) for name in timed[0]},
    }


def tokens(trainer: Any, inputs: Any, distil: bool) -> dict[str, int]:
    """Tokens of one micro-batch: real ones the model reads, trained ones, places computed with padding."""
    if not distil:
        mask = inputs["attention_mask"]
        trained = int((inputs["labels"][:, 1:] != -100).sum())
        return {"read": int(mask.sum()), "trained": trained, "padded": mask.numel()}
    inputs = trainer._buffered_inputs[(trainer._step - 1) % trainer.args.gradient_accumulation_steps]
    masks = inputs["prompt_mask"], inputs["completion_mask"]
    read, padded = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    return {"read": read, "trained": int(masks[1].sum()), "padded": padded}


def losses(job: dict[str, Any], work: dict[str, Any], folder: str) -> dict[str, float]:
    """Both losses and the norms of their gradients on the check's batch."""
    found: dict[str, float] = {}
    job = {**job, "batch": 1, "prompts": 1, "group": 1, "steps": 1, "warmup": 0, "length": 1}
    job["variant"] = {"attention": "sdpa", "compile": "no", "micro": 1, "order": "sequential"}
    rows = work["check"]
    trainer = sft_trainer(job, work, folder)
    batch = trainer.data_collator(
        [
            {
                "input_ids": row["prompt"] + row["completion"],
                "labels": [-100] * len(row["prompt"]) + row["completion"],
            }
            for row in rows
        ]
    )
    found |= measured("cross_entropy", trainer, batch)
    trainer = distillation_trainer(job, work, folder)
    wide = max(len(row["prompt"]) for row in rows), max(len(row["completion"]) for row in rows)
    empty = [torch.zeros(len(rows), width, dtype=torch.long) for width in (*wide, *wide)]
    names = ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")
    inputs = dict(zip(names, empty, strict=True))
    for place, row in enumerate(rows):
        start, end = wide[0] - len(row["prompt"]), len(row["completion"])
        inputs["prompt_ids"][place, start:] = torch.tensor(row["prompt"])
        inputs["prompt_mask"][place, start:] = 1
        inputs["completion_ids"][place, :end] = torch.tensor(row["completion"])
        inputs["completion_mask"][place, :end] = 1
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    return found | measured("divergence", trainer, inputs)


def measured(name: str, trainer: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Loss and gradient norm of one batch."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), float("inf"))
    return {name: float(loss.detach()), f"{name}_grad_norm": float(norm)}


def main() -> None:
    """One job."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    logging.disable_progress_bar()
    disable_progress_bars()
    work = json.loads((Path(job["work"]) / "work.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = losses(job, work, folder) if job["part"] == "losses" else run(job, work, folder)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
