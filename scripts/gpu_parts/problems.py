"""Prompts and reference answers of the procedural world, without its grader (which needs more than torch)."""

from __future__ import annotations

from functools import lru_cache

from onpol_cli.core.types import Problem
from onpol_cli.learner.chat import Chat
from onpol_cli.learner.model import load_tokenizer
from onpol_cli.rollout.engine import Prompt
from onpol_cli.tasks.minimal_edit.families import select_families
from onpol_cli.tasks.world import prompts
from onpol_cli.tasks.world.problems import edit_problems

Ids = tuple[int, ...]


@lru_cache(maxsize=1)
def chat() -> Chat:
    """The tiny model's tokenizer."""
    return Chat(load_tokenizer("tiny"))


def encoded(count: int) -> list[tuple[Problem, Ids]]:
    """The first `count` training problems of `tiny-edit` with their prompt ids."""
    problems = edit_problems(0, "train", select_families("out-of-domain"), count)
    return [(p, chat().prompt_ids(prompts.repair(p.statement, p.corrupted or ""))) for p in problems]


def tiny_prompts(count: int, samples: int) -> list[Prompt]:
    """As a sampler takes them."""
    return [Prompt(p.problem_id, ids, samples, number) for number, (p, ids) in enumerate(encoded(count))]
