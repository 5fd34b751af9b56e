"""What the base model is trained on: code generation, repair in a random style, copying.

Only programs of the training split. A repair keeps the style of the corrupted function with
probability `keep_style` and is rewritten in a random one otherwise, so that the base fixes bugs but
over-edits, as real models do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from onpol_cli.core.config import BaseConfig
from onpol_cli.core.seeding import derive_rng
from onpol_cli.core.types import Message
from onpol_cli.tasks.minimal_edit.families import select_families
from onpol_cli.tasks.world import prompts
from onpol_cli.tasks.world.items import draw_spec_of, failing_mutant, try_item
from onpol_cli.tasks.world.render import render, signature
from onpol_cli.tasks.world.style import draw_style

Example = tuple[list[Message], str]


def pretraining_examples(seed: int, config: BaseConfig) -> Iterator[Example]:
    """Endless (chat turns, answer) pairs; the same arguments give the same stream."""
    rng = derive_rng(seed, "world", "pretraining")
    sets = (select_families("in-domain"), select_families("out-of-domain"))
    while True:
        kind = rng.random()
        if kind < config.codegen_share:
            yield _generation(rng)
        elif kind < config.codegen_share + config.repair_share:
            example = _repair(rng, sets, config.keep_style)
            if example is not None:
                yield example
        else:
            source = render(draw_spec_of("train", rng), draw_style(rng))
            yield prompts.copying(source), source


def _generation(rng: random.Random) -> Example:
    spec = draw_spec_of("train", rng)
    return prompts.generation(spec.english(), signature(spec)), render(spec, draw_style(rng))


def _repair(rng: random.Random, sets: tuple[tuple[str, ...], ...], keep_style: float) -> Example | None:
    item = try_item(draw_spec_of("train", rng), rng)
    mutant = failing_mutant(item, rng.choice(sets), rng) if item else None
    if item is None or mutant is None:
        return None
    answer = item.source if rng.random() < keep_style else render(item.spec, draw_style(rng))
    return prompts.repair(item.spec.english(), mutant.source), answer
