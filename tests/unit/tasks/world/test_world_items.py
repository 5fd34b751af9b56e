"""Rendering, tests and mutants of the world."""

import ast
import os
import random
import subprocess
import sys
from itertools import islice

import pytest

from onpol_cli.tasks.minimal_edit.families import FAMILIES, all_corruptions, select_families
from onpol_cli.tasks.world.inputs import INPUTS, InputMaker, Raised, run_trusted
from onpol_cli.tasks.world.items import Item, draw_items, failing_mutant, fails, split_of
from onpol_cli.tasks.world.render import ENTRY_POINT, render
from onpol_cli.tasks.world.spec import Piecewise, draw_spec
from onpol_cli.tasks.world.style import draw_style


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return list(islice(draw_items(0, "train", "tests"), 300))


def test_every_style_of_a_program_does_the_same_and_never_raises() -> None:
    rng = random.Random(11)
    texts = 0
    for _ in range(400):
        spec = draw_spec(rng)
        calls = InputMaker(spec.params, spec.values(), rng, isinstance(spec, Piecewise)).inputs()
        spellings = {render(spec, draw_style(rng)) for _ in range(4)}
        results = [run_trusted(source, ENTRY_POINT, calls) for source in spellings]
        assert not any(isinstance(value, Raised) for result in results for value in result), spec.english()
        assert all(result == results[0] for result in results), spec.english()
        texts += len(spellings)
    assert texts > 1200


def test_source_is_in_the_layout_of_unparse(items: list[Item]) -> None:
    assert all(ast.unparse(ast.parse(item.source)) == item.source for item in items)


def test_programs_hold_nothing_that_could_run_for_ever(items: list[Item]) -> None:
    kinds = {type(node) for item in items for node in ast.walk(ast.parse(item.source))}
    assert not kinds & {ast.While, ast.Import, ast.ImportFrom, ast.Lambda, ast.Global}


def test_items_have_enough_telling_tests(items: list[Item]) -> None:
    assert all(len(item.calls) == len(item.expected) == INPUTS for item in items)
    assert INPUTS >= 12
    assert all(len({repr(value) for value in item.expected}) > 1 for item in items)
    assert all(split_of(item.spec) == "train" for item in items)


def test_items_are_distinct_and_repeatable(items: list[Item]) -> None:
    assert len({item.item_id for item in items}) == len(items)
    again = list(islice(draw_items(0, "train", "tests"), 40))
    assert [(item.source, item.calls) for item in again] == [(item.source, item.calls) for item in items[:40]]
    other = next(draw_items(1, "train", "tests"))
    assert other.source != items[0].source


@pytest.mark.parametrize("families", ["in-domain", "out-of-domain"])
def test_mutants_fail_a_test_and_stay_in_their_families(items: list[Item], families: str) -> None:
    names, rng, made = select_families(families), random.Random(3), 0
    for item in items:
        mutant = failing_mutant(item, names, rng)
        if mutant is None:
            continue
        made += 1
        got = run_trusted(mutant.source, ENTRY_POINT, item.calls)
        assert any(isinstance(a, Raised) or a != b for a, b in zip(got, item.expected, strict=True))
        assert set(mutant.families) <= set(names)
    assert made > 0.75 * len(items)


def test_every_corruption_family_finds_a_bug_somewhere(items: list[Item]) -> None:
    found = set()
    for item in [*items, *islice(draw_items(0, "train", "more"), 500)]:
        for name in set(FAMILIES) - found:
            if any(fails(item, mutant.source) for mutant in all_corruptions(item.source, (name,))):
                found.add(name)
    assert found == set(FAMILIES)


def test_a_correct_program_does_not_fail(items: list[Item]) -> None:
    assert not any(fails(item, item.source) for item in items[:50])


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_verdict_on_a_mutant_does_not_depend_on_the_hash_seed(seed: str) -> None:
    """Sets of strings iterate in another order in every process; problem sets must not."""
    code = (
        "from onpol_cli.tasks.world.inputs import run_trusted\n"
        "source = 'def f(words):\\n    return sorted(set(words), key=len)'\n"
        "print(run_trusted(source, 'f', [(['ta', 'en', 'ri', 'so', 'an', 'ta'],)]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[['ta', 'en', 'ri', 'so', 'an']]", done.stderr
