"""Writes run directories in the documented format, with known effects, for tests of the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

LABELS = {
    # label: (method, tutor label, pass, excess, forgetting-bench pass, KL)
    "base": ("base", None, 0.70, 0.17, 0.80, 0.0),
    "SFT": ("sft", None, 0.72, 0.40, 0.30, 0.20),
    "RL": ("rl", None, 0.78, 0.06, 0.78, 0.02),
    "OPD from SFT": ("opd", "SFT", 0.80, 0.06, 0.74, 0.05),
    "OPD from RL": ("opd", "RL", 0.79, 0.055, 0.77, 0.03),
}
FAMILIES = ("comparison", "range_bounds", "sort_order", "slice_bounds")
ORIGINAL = """def solve(xs, limit):
    total = 0
    for x in xs:
        if x < limit:
            total += x
    return total
"""
CORRUPTED = ORIGINAL.replace("x < limit", "x <= limit")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def answer(rng: Random, passed: bool, excess: float) -> str:
    """A markdown answer, sometimes rewritten more than needed."""
    code = ORIGINAL if passed else CORRUPTED
    if excess > 0.2:
        code = code.replace("total", "result").replace("for x in xs", "for value in xs").replace("x <", "value <")
    return f"The bound is off by one.\n\n```python\n{code}```\n" if rng.random() < 0.9 else f"```python\n{code}```"


def write_eval(root: Path, label: str, seed: int, **options: Any) -> Path:
    """One evaluation run and the training run behind it; returns the evaluation's folder.

    Options: problems (40), samples (1), temperatures ([1.0]), settings (extra eval settings),
    poison (completion of the first problem), steps (30), train (True).
    """
    method, tutor, p_edit, excess, p_gen, kl = LABELS[label]
    rng = Random(f"{label}-{seed}")
    problems, samples = options.get("problems", 40), options.get("samples", 1)
    heats = options.get("temperatures", [1.0])
    slug = label.lower().replace(" ", "-")
    path = root / f"eval-{slug}-s{seed}"
    path.mkdir(parents=True)
    rows = []
    for bench, rate in (("tiny-edit-ood", p_edit), ("tiny-codegen", p_gen)):
        for number in range(problems):
            easy = Random(f"{bench}-{number}").random()
            for heat in heats:
                for sample in range(samples):
                    rows.append(_row(rng, bench, number, sample, heat, rate, easy, excess))
    if options.get("poison"):
        rows[0]["completion"] = options["poison"]
    write_lines(path / "samples.jsonl", rows)
    write_lines(
        path / "problems.jsonl",
        [_problem(bench, n) for bench in ("tiny-edit-ood", "tiny-codegen") for n in range(problems)],
    )
    train = (
        write_train(root, label, seed, options.get("steps", 30))
        if method != "base" and options.get("train", True)
        else None
    )
    manifest = {
        "run": path.name, "command": ["onpol", "eval"], "method": method, "model_role": "student" if tutor else "tutor",
        "tutor": tutor, "label": label, "seed": seed, "git_commit": "0123abc", "dirty": False,
        "versions": {"numpy": "2"}, "hardware": {"cpu": "test"}, "status": "done", "wall_s": 12.0,
        "hashes": {"model": f"{label}{seed}", "tutor": tutor, "data": {"tiny-edit-ood": "aa", "tiny-codegen": "bb"}},
        "eval_settings": {"samples": samples, "temperatures": heats, "max_new_tokens": 192, "seed": 1234,
                          **options.get("settings", {})},
        "evaluates": {"run": train.name if train else None, "label": label, "method": method, "tutor_label": tutor,
                      "seed": seed, "train_run_dir": str(train) if train else None},
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "config.yaml").write_text(f"seed: {seed}\nmethod:\n  name: {method}\n")
    noise = rng.random() * 0.005 + seed * 0.001
    kls = {
        b: {"base_model": kl + noise, "model_base": kl * 1.2 + noise, "n_tokens": 4000}
        for b in ("tiny-edit-ood", "tiny-codegen")
    }
    (path / "kl.json").write_text(json.dumps(kls))
    if method != "base":
        part = {"tokens": 900.0, "mean_change": kl, "gini": 0.6, "spearman_surprisal": 0.9, "spearman_entropy": 0.8,
                "forced_pass": 0.25, "forced_n": 40.0}  # fmt: skip
        whole = {"share_changed": 0.4 + kl, "relative_norm": 0.01, "low_prob_share": 0.02}
        (path / "update.json").write_text(json.dumps(dict.fromkeys(kls, part) | whole))
    return path


def _row(
    rng: Random, bench: str, number: int, sample: int, heat: float, rate: float, easy: float, excess: float
) -> dict[str, Any]:
    # Half of the luck belongs to the problem: answers of two models to one problem are correlated.
    passed = 0.5 * easy + 0.5 * rng.random() < 0.5 * (0.5 + rate) if rate > 0.5 else rng.random() < rate
    edit = bench == "tiny-edit-ood"
    over = max(0.0, rng.gauss(excess, 0.05))
    outcome = "passed" if passed else rng.choice(["failed", "failed", "timeout", "no_answer", "truncated", "error"])
    return {
        "bench": bench, "problem_id": f"{bench}/{number}", "sample": sample, "temperature": heat, "outcome": outcome,
        "reward": 0.1 - over if passed else -0.2, "completion": answer(rng, passed, over),
        "excess_levenshtein": over if edit else None, "added_cc": float(rng.randrange(3)) * over if edit else None,
        "families": [FAMILIES[number % 4]] if edit else [], **({"exact_reversal": over == 0.0} if edit else {}),
    }  # fmt: skip


def _problem(bench: str, number: int) -> dict[str, Any]:
    edit = bench == "tiny-edit-ood"
    return {
        "bench": bench, "problem_id": f"{bench}/{number}",
        "statement": f"Sum the numbers below the limit (variant {number}).", "original": ORIGINAL,
        "corrupted": CORRUPTED if edit else None, "families": [FAMILIES[number % 4]] if edit else [],
    }  # fmt: skip


def write_train(root: Path, label: str, seed: int, steps: int) -> Path:
    """A training run: OPD's entropy falls and its reward rises faster than RL's."""
    method, tutor = LABELS[label][:2]
    path = root / f"train-{label.lower().replace(' ', '-')}-s{seed}"
    path.mkdir(parents=True, exist_ok=True)
    rng = Random(f"train-{label}-{seed}")
    speed = 0.5 if method == "opd" else 0.08
    rows = []
    for step in range(steps):
        done = 1 - 2.718281828 ** (-speed * step)
        row = {
            "step": step, "loss/total": 1 - done, "reward/mean": -0.1 + 0.15 * done + rng.gauss(0, 0.002),
            "entropy": 0.6 - 0.4 * done + rng.gauss(0, 0.002), "kl/teacher": 0.3 * (1 - done), "kl/mismatch": 1e-4,
            "length/mean": 50 - 5 * done, "time/generate": 1.5, "time/grade": 0.3, "time/score": 0.2 if tutor else 0.0,
            "time/train": 0.8, "time/sync": 0.05, "tokens/generated": 12000, "tokens/scored": 12000 if tutor else 0,
            "tokens/trained": 12000, "memory/peak_mb": 900 + step,
        }  # fmt: skip
        if step % 5 == 0:
            row["validation/tiny-edit/pass@1"] = 0.7 + 0.12 * done
        rows.append(row)
    write_lines(path / "metrics.jsonl", rows)
    manifest = {"run": path.name, "command": ["onpol", "train"], "method": method, "label": label, "seed": seed,
                "tutor": tutor, "status": "done", "wall_s": steps * 2.85, "hardware": {"cpu": "test"}}  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    config = f"seed: {seed}\ntask:\n  name: tiny-edit-ood\nmethod:\n  name: {method}\n  steps: {steps}\n"
    (path / "config.yaml").write_text(config)
    return path


def write_all(root: Path, seeds: tuple[int, ...] = (0,), **options: Any) -> list[Path]:
    """Evaluations of all labels at all seeds (the base once)."""
    return [
        write_eval(root, label, seed, **options)
        for label in LABELS
        for seed in (seeds if label != "base" else seeds[:1])
    ]  # fmt: skip
