"""Which settings exist: the configuration folder, its groups and choices, the dotted names of the schema.

Owns lookup of names only. Imports neither Hydra nor OmegaConf, so that shell completion stays quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError

ROOT_CONFIG = "config"
MAPPINGS = ("eval.data", "method.tutors", "task.templates", "matrix.quick_rows")
"""Settings whose entries users name themselves."""


def conf_dir() -> Path:
    """The configuration folder: inside the installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / f"{ROOT_CONFIG}.yaml").is_file():
            return candidate
    raise OnpolError(f"No configuration folder beside {package}. Reinstall onpol: pip install -e .")


def groups() -> dict[str, list[str]]:
    """Config groups and their choices, read from the folder."""
    root = conf_dir()
    found: dict[str, list[str]] = {}
    for file in sorted(root.glob("*/**/*.yaml")):
        found.setdefault(str(file.parent.relative_to(root)), []).append(file.stem)
    return found


def keys(kind: type[Any] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings of the schema."""
    names: list[str] = []
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        target: Any = hints[item.name]
        name = prefix + item.name
        nested: bool = dataclasses.is_dataclass(target)
        names += keys(target, name + ".") if nested else [name]
    return names


def inside_mapping(name: str) -> bool:
    """Whether `name` addresses an entry of a free mapping (eval.data.NAME, method.tutors.DOMAIN) or of `claims`."""
    return name.startswith("claims.") or any(name.startswith(f"{mapping}.") for mapping in MAPPINGS)


def nearest(word: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The spellings of `known` closest to `word`; by last part of a dotted name too."""
    close = difflib.get_close_matches(word, known, n=count, cutoff=0.6)
    tail = word.rsplit(".", 1)[-1]
    by_tail = [name for name in known if name.rsplit(".", 1)[-1] == tail]
    fuzzy = [
        name
        for part in difflib.get_close_matches(tail, [n.rsplit(".", 1)[-1] for n in known], n=count, cutoff=0.75)
        for name in known
        if name.rsplit(".", 1)[-1] == part
    ]
    return list(dict.fromkeys(by_tail + close + fuzzy))[:count]
