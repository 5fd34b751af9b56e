"""The pretraining stream and the shape of the base."""

from itertools import islice

import pytest

from onpol_cli.core.config import BaseConfig
from onpol_cli.core.types import Message
from onpol_cli.tasks.world.pretraining import pretraining_examples
from onpol_cli.tasks.world.problems import edit_problems, generation_problems

Example = tuple[list[Message], str]


def examples(count: int, **changes: float) -> list[Example]:
    return list(islice(pretraining_examples(5, BaseConfig(**changes)), count))


def kind(example: Example) -> str:
    return example[0][0]["content"].split(":")[0]


def test_shares_of_the_mixture() -> None:
    kinds = [kind(e) for e in examples(1500, codegen_share=0.3, repair_share=0.6)]
    assert abs(kinds.count("Write") / 1500 - 0.3) < 0.06
    assert abs(kinds.count("Fix") / 1500 - 0.6) < 0.1
    assert abs(kinds.count("Copy") / 1500 - 0.1) < 0.04


def test_copies_are_copies() -> None:
    copied = examples(200, codegen_share=0.0, repair_share=0.0)
    assert all(messages[0]["content"] == f"Copy:\n{answer}" for messages, answer in copied)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_repairs_keep_the_style_as_often_as_asked(keep: float) -> None:
    """A kept style differs from the broken code in few lines; a random one seldom does."""
    repairs = examples(150, codegen_share=0.0, repair_share=1.0, keep_style=keep)
    near = 0
    for messages, answer in repairs:
        broken = messages[0]["content"].split("\n", 1)[1]
        assert broken != answer or keep < 1
        near += sum(a != b for a, b in zip(broken.splitlines(), answer.splitlines(), strict=False)) <= 1
    assert near > 130 if keep else near < 60


def test_stream_is_deterministic_and_depends_on_the_seed() -> None:
    assert examples(60) == examples(60)
    assert next(pretraining_examples(6, BaseConfig())) != examples(1)[0]


def test_nothing_of_the_test_split_is_trained_on() -> None:
    described = {e[0][0]["content"].split("\n")[0].split(": ", 1)[-1] for e in examples(1000)}
    tested = {p.statement for p in generation_problems(0, "test", 1000)}
    tested |= {p.statement for p in edit_problems(0, "validation", ("numeric_constants",), 300)}
    assert len(described) > 500
    assert not described & tested
