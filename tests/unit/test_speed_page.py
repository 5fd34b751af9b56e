"""docs/speed.md: its commands name benches and options that exist, its figures are those of the committed JSON."""

import json
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


def test_quoted_ratios_are_the_committed_ones():
    sections = json.loads((ROOT / "results" / "bench" / "vs_trl.json").read_text())["sections"]
    rows = re.findall(r"^\| `([a-z-]+:[a-z0-9]+)` \|.*\| \*\*([\d.]+)\*\* \|", PAGE, re.MULTILINE)
    against = {name: part["ratios"]["onpol"] for name, part in sections.items() if "ratios" in part}
    measured = {name: ratios["tokens_per_s"] for name, ratios in against.items()}
    assert {name: float(ratio) for name, ratio in rows} == {name: round(r, 2) for name, r in measured.items()}
