"""From `conf/` and command-line overrides to a typed `Config`.

Owns finding the configuration folder, Hydra composition, and turning Hydra's long tracebacks into one
line with the nearest valid keys. Nothing else in onpol sees a `DictConfig`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError

ROOT_CONFIG = "config"
SCHEMA = "schema"


def conf_dir() -> Path:
    """The configuration folder: inside the installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / f"{ROOT_CONFIG}.yaml").is_file():
            return candidate
    raise OnpolError(f"No configuration folder beside {package}. Reinstall onpol: pip install -e .")


def register_schema() -> None:
    """Make the dataclasses the schema of every composition (idempotent)."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=SCHEMA, node=Config)


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose the root configuration with `overrides` (Hydra grammar).

    Raises:
        OnpolError: misspelt keys or groups, wrong types, values out of range; one line with the
            nearest valid spelling.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return to_config(hydra_compose(ROOT_CONFIG, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise OnpolError(explain(error, overrides)) from error


def to_config(node: Any) -> Config:
    """The typed object behind a composed `DictConfig` (range checks run here)."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise OnpolError(explain(error, ())) from error
    assert isinstance(config, Config)
    return config


def to_yaml(config: Config) -> str:
    """`config` as YAML text, for the run directory."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(text: str) -> Config:
    """The `Config` that `to_yaml` wrote; keys of other versions are an `OnpolError`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return to_config(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text)))
    except OmegaConfBaseException as error:
        raise OnpolError(f"config.yaml does not fit this version of onpol: {_first_line(error)}") from error


def groups() -> dict[str, list[str]]:
    """Config groups and their choices, read from the folder."""
    root = conf_dir()
    found: dict[str, list[str]] = {}
    for file in sorted(root.glob("*/**/*.yaml")):
        found.setdefault(str(file.parent.relative_to(root)), []).append(file.stem)
    return found


def keys(kind: type[Any] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings of the schema."""
    import typing

    names: list[str] = []
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        target = hints[item.name]
        name = prefix + item.name
        names += keys(target, name + ".") if dataclasses.is_dataclass(target) else [name]
    return names


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


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line for people: what is wrong with which override, and the nearest valid spelling."""
    text = _chain(error)
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0]
        if "=" not in override and "~" not in override:
            return f"Override {override!r} has no '='. Write key=value, for example seed=1 or method=rl."
        known = keys() + list(groups())
        if name not in known and not any(k.startswith(name + ".") for k in known) and name.split("@")[0] not in known:
            if _inside_mapping(name) or name.startswith("hydra"):
                continue
            close = nearest(name, known)
            hint = f" Did you mean: {', '.join(close)}?" if close else " See 'onpol train tutor --dry-run' for all keys."
            return f"Unknown setting {name!r}.{hint}"
    missing = re.search(r"Could not find '([^']+)'|In '[^']+': Could not load '([^']+)'", text)
    if missing:
        wanted = (missing.group(1) or missing.group(2)).removesuffix(".yaml")
        group, _, choice = wanted.rpartition("/")
        choices = groups().get(group, [])
        close = difflib.get_close_matches(choice, choices, n=1)
        hint = f" Did you mean {group}={close[0]}?" if close else ""
        return f"No {group or 'config'} named {choice!r}.{hint} Choices: {', '.join(choices) or 'none'}."
    return _first_line_text(text)


def _inside_mapping(name: str) -> bool:
    """Whether `name` addresses an entry of a free mapping of the schema (eval.data.x, method.tutors.y)."""
    parent = name.rsplit(".", 1)[0]
    return parent in ("eval.data", "method.tutors", "task.templates") or name.split(".")[0] in ("claims", "matrix")


def _chain(error: BaseException) -> str:
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        parts.append(str(current))
        current = current.__cause__ or current.__context__
    return "\n".join(parts)


def _first_line(error: Exception) -> str:
    return _first_line_text(_chain(error))


def _first_line_text(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    useful = [line for line in lines if not line.startswith(("full_key:", "object_type=", "See https", "reference_type="))]
    detail = next((line for line in useful if "rror merging" not in line), useful[0] if useful else "unreadable override")
    return f"{key}: {detail}" if key and key not in detail else detail


def as_dict(config: Config) -> dict[str, Any]:
    """Nested plain data of `config` (enums as their values), JSON-serialisable."""
    return cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.value if hasattr(value, "value") and not isinstance(value, int | float) else value
