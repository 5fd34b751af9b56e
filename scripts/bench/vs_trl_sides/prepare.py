"""Makes what both sides read: `prepare.py '{"work": FOLDER, "problems": 1280, "threads": 2}'`.

`student/` is the shipped base in float32, `teacher/` the same after a few SFT steps; `work.json` holds
prompts as text and ids, SFT examples, and one small batch with completions on which both sides compute
their losses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from onpol_cli.core.config import Config, RolloutConfig, SamplingConfig, TaskConfig
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.chat import Chat
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import PACKAGED_TINY, load_tokenizer
from onpol_cli.rollout.engine import Prompt, build_engine
from onpol_cli.sandbox import Sandbox
from onpol_cli.tasks.registry import build_task

TEACHER_STEPS, TEACHER_BATCH, CHECK = 20, 32, 16


def examples(problems: int) -> tuple[Any, list[dict[str, Any]]]:
    """Tokenizer, and prompts with their reference completions from the training split of the tiny task."""
    tokenizer = load_tokenizer(PACKAGED_TINY)
    chat = Chat(tokenizer)
    config = Config(task=TaskConfig(name="tiny-edit"))
    with Sandbox(config.sandbox) as sandbox:
        task = build_task(config.task, sandbox)
        rows = []
        for problem in task.problems("train")[:problems]:
            text = tokenizer.apply_chat_template(
                task.messages(problem), add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            ids = chat.prompt_ids(task.messages(problem))
            rows.append({"text": text, "prompt": ids, "completion": chat.completion_ids(task.reference(problem))})
    return tokenizer, rows


def train_teacher(tokenizer: Any, rows: list[dict[str, Any]], student: Path, teacher: Path) -> None:
    """A few SFT steps from the base, so that the divergence is not zero."""
    config = Config()
    config.optim.lr = 2e-4
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    learner = Learner(model, tokenizer, config, TEACHER_STEPS, torch.device("cpu"))
    for step in range(TEACHER_STEPS):
        part = rows[step * TEACHER_BATCH : (step + 1) * TEACHER_BATCH]
        learner.step(
            [TrainExample(r["prompt"], r["completion"], ce_weights=torch.ones(len(r["completion"]))) for r in part]
        )
    learner.save_pretrained(teacher, torch.float32)


def sampled(tokenizer: Any, rows: list[dict[str, Any]], student: Path) -> list[dict[str, Any]]:
    """The check's batch: prompts with completions of the student, of ragged lengths."""
    prompts = [Prompt(str(i), tuple(row["prompt"]), seed=i) for i, row in enumerate(rows[:CHECK])]
    with build_engine(RolloutConfig(), str(student), tokenizer, 0, "cpu") as engine:
        rollouts = engine.generate(prompts, SamplingConfig(max_new_tokens=64))
    return [{"prompt": r.prompt_ids, "completion": r.completion_ids} for r in rollouts]


def main() -> None:
    """Write the folder."""
    settings = json.loads(sys.argv[1])
    folder = Path(settings["work"])
    torch.set_num_threads(settings["threads"])
    tokenizer, rows = examples(settings["problems"])
    model = AutoModelForCausalLM.from_pretrained(PACKAGED_TINY, dtype=torch.float32)
    model.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    train_teacher(tokenizer, rows, folder / "student", folder / "teacher")
    check = sampled(tokenizer, rows, folder / "student")
    (folder / "work.json").write_text(json.dumps({"rows": rows, "check": check}))
    sys.stdout.write(json.dumps({"rows": len(rows), "parameters": model.num_parameters()}) + "\n")


if __name__ == "__main__":
    main()
