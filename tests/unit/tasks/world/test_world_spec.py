"""The world's size, its English, its split."""

import random
import re

from onpol_cli.tasks.world.inputs import InputMaker, run_trusted
from onpol_cli.tasks.world.items import SPLITS, split_of
from onpol_cli.tasks.world.render import ENTRY_POINT, render
from onpol_cli.tasks.world.spec import Piecewise, Spec, Walk, count_programs, draw_spec
from onpol_cli.tasks.world.style import draw_style


def specs(count: int, seed: int) -> list[Spec]:
    rng = random.Random(seed)
    return [draw_spec(rng) for _ in range(count)]


def blanked(text: str) -> str:
    """Text with numbers and quoted letters removed, so that constants do not matter."""
    text = re.sub(r"(starting with|ending with|[wk] with|without|first|with) '[a-z]'", r"\1 '_'", text)
    return re.sub(r"-?\d+|'[^']*'", "_", text)


def test_more_than_a_million_programs_of_the_plainest_kind() -> None:
    assert count_programs() > 10**6


def test_distinct_identities_behave_differently() -> None:
    """The count above is of meanings, not of spellings: few pairs of identities agree on 200 inputs."""
    plain = [s for s in specs(6000, 1) if isinstance(s, Walk) and s.params == ("xs",) and s.source.roles == ("x",)]
    plain = list({s.identity: s for s in plain if s.result == "int"}.values())[:400]
    calls = [InputMaker(("xs",), range(12), random.Random(i), False).draw(3 + i % 7) for i in range(200)]
    style = draw_style(random.Random(0))
    seen = {repr(run_trusted(render(s, style), ENTRY_POINT, calls)) for s in plain}
    assert len(plain) == 400
    assert len(seen) > 0.9 * len(plain)


def test_english_determines_the_meaning() -> None:
    found: dict[str, set[str]] = {}
    for spec in specs(8000, 2):
        found.setdefault(spec.english(), set()).add(spec.identity)
    assert [names for names in found.values() if len(names) > 1] == []


def test_no_description_lies_in_two_splits_even_with_constants_blanked() -> None:
    where: dict[str, set[str]] = {}
    for spec in specs(12000, 3):
        where.setdefault(blanked(spec.english()), set()).add(split_of(spec))
    assert [text for text, splits in where.items() if len(splits) > 1] == []
    assert len(where) > 4000


def test_every_split_gets_its_share() -> None:
    drawn = [split_of(spec) for spec in specs(6000, 4)]
    shares = {split: drawn.count(split) / len(drawn) for split in SPLITS}
    assert 0.74 < shares["train"] < 0.86
    assert 0.04 < shares["validation"] < 0.13
    assert 0.07 < shares["test"] < 0.18


def test_skeleton_ignores_constants_and_identity_does_not() -> None:
    by_skeleton: dict[str, set[str]] = {}
    for spec in specs(8000, 5):
        by_skeleton.setdefault(spec.skeleton, set()).add(spec.identity)
        assert not isinstance(spec, Piecewise) or spec.skeleton.startswith("piecewise/")
    assert max(len(identities) for identities in by_skeleton.values()) > 2


def test_drawing_is_deterministic() -> None:
    assert [s.identity for s in specs(50, 6)] == [s.identity for s in specs(50, 6)]
