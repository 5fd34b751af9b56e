"""Sampling answers of a model for a bench, and grading them as they come.

Owns prompts in, rollouts, graded lines out; one pass per (bench, temperature). Answers in the run directory stay as
they are, and only problems that lack some are sampled. Engines arrive as callables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onpol_cli.core.seeding import derive_seed
from onpol_cli.core.types import Completion, Problem, Rollout
from onpol_cli.evaluation.grading import Progress, Write, grade_answers
from onpol_cli.evaluation.records import Key, Row
from onpol_cli.rollout.engine import Prompt
from onpol_cli.tasks.answers import Answer
from onpol_cli.tasks.protocol import Task

CHUNK = 256
"""Problems sampled and graded between two writes."""

Ids = tuple[int, ...]
Sample = Callable[[Sequence[Prompt]], list[Rollout]]


def evaluate_bench(
    task: Task,
    problems: Sequence[tuple[Problem, Ids]],
    sample: Sample,
    write: Write,
    *,
    temperature: float,
    samples: int,
    seed: int,
    done: Mapping[Key, Row],
    on_progress: Progress | None = None,
) -> list[Row]:
    """Sample `samples` answers per problem at `temperature`, grade them, write their lines.

    Args:
        problems: with their prompt ids.
        sample: the engine at this temperature.
        seed: of evaluation sampling; each problem's seed is derived from its id, so that neither the
            number of problems nor their order changes an answer.
        done: lines of an earlier attempt.

    Returns:
        All lines, in order.
    """
    rows: list[Row] = []
    total = len(problems) * samples
    for start in range(0, len(problems), CHUNK):
        part = problems[start : start + CHUNK]
        kept = _kept(task.name, part, samples, temperature, done)
        lacking = [item for item in part if any((item[0].problem_id, n) not in kept for n in range(samples))]
        drawn = _sampled(task.name, lacking, sample, temperature, samples, seed) if lacking else []
        # What is graded stays: a new engine need not draw the same answer again (in bfloat16 on a GPU it does not).
        known = {(answer.problem.problem_id, answer.sample): answer for answer in drawn} | kept
        answers = [known[problem.problem_id, number] for problem, _ in part for number in range(samples)]
        rows += grade_answers(task, answers, write, done=done)
        if on_progress is not None:
            on_progress(len(rows), total)
    return rows


def _kept(
    bench: str, part: Sequence[tuple[Problem, Ids]], samples: int, temperature: float, done: Mapping[Key, Row]
) -> dict[tuple[str, int], Answer]:
    """Answers of a part that are already graded, by problem and number."""
    found = {}
    for problem, _ in part:
        for number in range(samples):
            row = done.get((bench, problem.problem_id, number, temperature))
            if row is not None:
                answer = Answer(problem, number, Completion(row["completion"]), {"temperature": temperature})
                found[problem.problem_id, number] = answer
    return found


def _sampled(
    bench: str, part: Sequence[tuple[Problem, Ids]], sample: Sample, temperature: float, samples: int, seed: int
) -> list[Answer]:
    prompts = [
        Prompt(problem.problem_id, ids, samples=samples, seed=derive_seed(seed, bench, problem.problem_id))
        for problem, ids in part
    ]
    owners = [problem for problem, _ in part for _ in range(samples)]
    return [
        Answer(owner, rollout.sample, rollout.completion(), extra(rollout, temperature))
        for owner, rollout in zip(owners, sample(prompts), strict=True)
    ]


def extra(rollout: Rollout, temperature: float) -> dict[str, float | int]:
    """What a sampled answer's line says beyond the grade."""
    return {"temperature": temperature, "tokens": len(rollout.completion_ids)}
