"""Which choice of a config group counts, and what its file says.

An experiment is composed after the groups, so that it may change what they chose; but a group that a person
names on the command line must not be beaten by it in silence (`learner=gpu` in the tiny experiment). Owns that
rule only; composing is `compose`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onpol_cli.core.settings import ROOT_CONFIG, conf_dir

WINNING = ("learner", "optim", "parallel", "sandbox", "rollout", "model", "task")
"""Groups of plain settings. A method's settings are the experiment's recipe for it, and stay so."""


def chosen_values(words: Sequence[str]) -> dict[str, Any]:
    """Dotted settings and values of the groups that `words` choose against the experiment's own choice.

    Left out: settings that another word names, and those that `debug` shortens.

    Args:
        words: checked `key=value` words.
    """
    said = dict(word.lstrip("+").split("=", 1) for word in words)
    root = choices(Path(ROOT_CONFIG))
    fixed = said.keys() | leaves(read(Path("debug") / said.get("debug", root["debug"]))).keys()
    own = experiment_choices(said.get("experiment", root["experiment"]))
    found: dict[str, Any] = {}
    for group, choice in said.items():
        if group in WINNING and choice != own.get(group):
            values = leaves(read(Path(group) / choice), f"{group}.")
            found |= {key: value for key, value in values.items() if key not in fixed}
    return found


def experiment_choices(experiment: str) -> dict[str, str]:
    """Choice of each group by the root configuration and `experiment`."""
    return choices(Path(ROOT_CONFIG)) | choices(Path("experiment") / experiment)


def choices(file: Path) -> dict[str, str]:
    """Choice of each group that a YAML's own defaults list names."""
    entries = [entry for entry in read(file).get("defaults", []) if isinstance(entry, dict)]
    return {str(key).removeprefix("override /"): str(value) for entry in entries for key, value in entry.items()}


def read(file: Path) -> dict[str, Any]:
    """A YAML of the configuration folder, named without its ending; {} if it is empty or not there."""
    from omegaconf import OmegaConf

    path = conf_dir() / file.with_name(f"{file.name}.yaml")
    content = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of nested settings, `defaults` left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            found[f"{prefix}{key}"] = value
    return found
