"""README.md and docs/: what they name exists."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from onpol_cli.comparison.curves import association
from onpol_cli.core.settings import groups, keys
from onpol_cli.tasks.catalog import BENCHES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)[^)]*\)")
PATH = re.compile(r"(?<![\w/.])((?:\./)?(?:scripts|docs|tests|conf|onpol_cli)/[\w./-]+)")
MADE = ("./results/runs",)
GROUP_WORD = re.compile(r"(?<![\w.-])(method|experiment|sandbox|rollout|task|debug|optim|parallel|learner)=([\w.-]+\w)")
KEY_WORD = re.compile(r"(?<![\w.=-])([a-z]+(?:\.[a-z_]+)+)=")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [path for path in PATH.findall(text) if path not in MADE and not (ROOT / path.rstrip(".")).exists()]
    assert not missing


def test_the_tree_is_the_tree() -> None:
    block = README.split("## The tree")[1].split("\n\n")[1]
    package = [line.split()[0] for line in block.splitlines() if line.startswith("      ")]
    top = [line.split()[0] for line in block.splitlines() if not line.startswith("      ")]
    assert all((ROOT / "onpol_cli" / name).exists() for name in package) and all((ROOT / name).exists() for name in top)
    here = {f"{path.parent.name}/" for path in (ROOT / "onpol_cli").glob("*/__init__.py")}
    assert here <= set(package)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_choices_and_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    choices = groups()
    assert not [(g, c) for g, c in GROUP_WORD.findall(text) if c not in choices[g]]
    heads = {key.split(".")[0] for key in keys()}
    open_ended = ("method.tutors.", "eval.data.")
    named = [key for key in KEY_WORD.findall(text) if key.split(".")[0] in heads and not key.startswith(open_ended)]
    assert not [key for key in named if key not in keys()]


def test_methods_and_benches_named_in_readme_exist() -> None:
    for line in README.splitlines():
        if "#" in line and line.startswith(("    onpol train tutor", "    onpol distill student")):
            assert set(re.findall(r"[\w-]+", line.split("#")[1])) <= set(groups()["method"])
    named = set(re.findall(r"--bench ([a-z][\w-]*)", README))
    assert named and named <= set(BENCHES)


def test_the_rank_correlation_comes_out_of_the_committed_tables() -> None:
    tables = ROOT / "results" / "tiny"
    with (tables / "divergence.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["prompts"] == "tiny-edit-ood" and row["model"] != "base"]
    kl: dict[str, list[float]] = {}
    for row in rows:
        kl.setdefault(row["model"], []).append(float(row["kl_base_model"]))
    with (tables / "scores.csv").open() as file:
        kept = [row for row in csv.DictReader(file) if row["bench"] == "tiny-codegen" and row["metric"] == "pass@1"]
    passed = {row["model"]: float(row["value"]) for row in kept if row["temperature"] == "1"}
    lost = [passed["base"] - passed[model] for model in kl]
    rho, low, high, p, _ = association(np.array([fmean(values) for values in kl.values()]), np.array(lost))
    assert f"Spearman {rho:.2f} [{low:.2f}, {high:.2f}] over the seven methods, p = {p:.2f}" in README
    assert len(kl) == 7 and len(rows) == 21
