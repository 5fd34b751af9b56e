"""From `conf/` and command-line overrides to a typed `Config`.

Owns Hydra composition and the round trip through YAML. Names of settings are `settings`'; messages about
words of the command line are `overrides`'. Nothing else in onpol sees a `DictConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from onpol_cli.core.choices import chosen_values
from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.overrides import check_grammar, check_overrides, explain, for_hydra
from onpol_cli.core.settings import ROOT_CONFIG, conf_dir

SCHEMA = "schema"


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
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check_overrides(overrides)
    check_grammar(for_hydra(overrides))
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            node = hydra_compose(ROOT_CONFIG, for_hydra(overrides))
        for key, value in chosen_values(overrides).items():
            OmegaConf.update(node, key, value)
        return to_config(node)
    except (HydraException, OmegaConfBaseException) as error:
        raise OnpolError(explain(error)) from error


def to_config(node: Any) -> Config:
    """The typed object behind a composed `DictConfig` (range checks run here)."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise OnpolError(explain(error)) from error
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
        raise OnpolError(f"config.yaml does not fit this version of onpol: {explain(error)}") from error


def as_dict(config: Config) -> dict[str, Any]:
    """Nested plain data of `config` (enums as their values), JSON-serialisable."""
    return cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.value if hasattr(value, "value") and not isinstance(value, int | float) else value
