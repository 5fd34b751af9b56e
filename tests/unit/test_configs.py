"""Every YAML of conf/ composes, in the place where it is meant to be used."""

from __future__ import annotations

import re

import pytest
import yaml

from onpol_cli.core.compose import as_dict, compose
from onpol_cli.core.config import Config
from onpol_cli.core.settings import conf_dir, groups
from onpol_cli.methods.registry import METHODS, check_method
from onpol_cli.stages.doctor_checks import check_context, check_eval_context

CHOICES = [(group, choice) for group, names in groups().items() for choice in names if group != "recipe"]
RECIPES = [file.stem for file in sorted((conf_dir() / "recipe").glob("*.yaml"))]
FILES = sorted(str(file.relative_to(conf_dir())) for file in conf_dir().glob("**/*.yaml"))


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="=".join)
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    assert isinstance(compose([f"{group}={choice}"]), Config)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_belongs_to_an_experiment_and_a_method_and_is_applied(recipe: str) -> None:
    experiment, _, method = recipe.partition("-")
    assert experiment in groups()["experiment"] and method in groups()["method"]
    written = yaml.safe_load((conf_dir() / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    composed = as_dict(compose([f"experiment={experiment}", f"method={method}"]))
    for group, values in written.items():
        assert values and values.items() <= composed[group].items()


@pytest.mark.parametrize("method", groups()["method"])
def test_every_method_can_be_built_and_names_itself(method: str) -> None:
    config = compose([f"method={method}"]).method
    check_method(config)
    assert config.name in METHODS and config.variant == method and config.label


@pytest.mark.parametrize("file", FILES)
def test_every_file_opens_with_a_comment(file: str) -> None:
    first = (conf_dir() / file).read_text(encoding="utf-8").splitlines()
    assert first[0].startswith("# ")


@pytest.mark.parametrize("experiment", [name for name in groups()["experiment"] if name != "none"])
def test_an_experiment_says_how_it_is_run(experiment: str) -> None:
    text = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    assert re.search(r"^# onpol \w+", text, re.MULTILINE)


PROMPT_TOKENS = 320
"""Room that every experiment leaves for prompts."""


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_leaves_vllm_room_for_prompts(experiment: str) -> None:
    words = [f"experiment={experiment}", "rollout=vllm"]
    for row in [None, *compose(words).matrix.rows]:
        config = compose([*words, *(row.overrides if row else [])])
        context = min(config.model.max_context, config.rollout.max_context)
        for answer in (config.rollout.sampling.max_new_tokens, config.eval.max_new_tokens):
            assert context - answer >= PROMPT_TOKENS
        assert check_context(config) == check_eval_context(config) == []


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_row_of_a_matrix_composes(experiment: str) -> None:
    matrix = compose([f"experiment={experiment}"]).matrix
    names = [row.name for row in matrix.rows]
    assert len(set(names)) == len(names) and set(matrix.quick_rows) <= set(names)
    for row in matrix.rows:
        assert not row.tutor or row.tutor in names
        words = [f"experiment={experiment}", *row.overrides, *matrix.quick, *matrix.quick_rows.get(row.name, [])]
        compose(words)
