"""docs/speed.md: its commands name benches and options that exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "speed.md").read_text("utf-8")
COMMANDS = sorted({" ".join(line.split()) for line in re.findall(r"python scripts/bench/[^`\n]+", PAGE)})


def test_the_page_has_commands():
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bench_knows_the_options_that_the_page_gives_it(command):
    _, script, *words = shlex.split(command)
    source = (ROOT / script).read_text("utf-8")
    missing = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
    assert not missing
