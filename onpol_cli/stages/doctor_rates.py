"""Learning rates before a run: those that nobody chose, and those at which adapters hardly move.

Owns these warnings alone; how bf16 weights take small steps is `doctor_memory.check_precision`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpol_cli.core.choices import choices
from onpol_cli.core.config import Config, OptimConfig
from onpol_cli.core.settings import ROOT_CONFIG, groups
from onpol_cli.stages.doctor_checks import Finding, warning
from onpol_cli.stages.session import variant

LORA_RATE = 1e-5
"""Rate below which AdamW hardly moves adapters: their second matrix begins at 0, and 50 steps of 1e-6 leave its
entries within 5e-5 of it."""


def check_rates(config: Config, words: Sequence[str] = ()) -> list[Finding]:
    """Whether somebody chose the rate for this method, and whether adapters learn at it.

    Args:
        words: of the command line; those that are no `key=value` are passed over.
    """
    return [*_recipe(config, words), *_adapters(config)]


def _recipe(config: Config, words: Sequence[str]) -> list[Finding]:
    """An experiment with recipes, none of which is this method's, trains it at the schema's rate."""
    said = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    experiment, method = said.get("experiment") or choices(Path(ROOT_CONFIG))["experiment"], variant(config)
    recipes = [name for name in groups().get("recipe", []) if name.startswith(f"{experiment}-")]
    chosen = config.optim.lr != OptimConfig().lr or not said.keys().isdisjoint(("optim.lr", "recipe"))
    if not recipes or f"{experiment}-{method}" in recipes or chosen:
        return []
    message = f"experiment={experiment} has no recipe for method={method}, which trains at the default optim.lr="
    message += f"{config.optim.lr:g}, {config.optim.schedule.value}"
    remedy = f"Set optim.lr and optim.schedule, or take another method's settings: recipe={'|'.join(recipes)}."
    return [warning("learning rate", message, remedy)]


def _adapters(config: Config) -> list[Finding]:
    rank, rate = config.model.lora.rank, config.optim.lr
    if rank == 0 or config.optim.name != "adamw" or rate >= LORA_RATE:
        return []
    message = f"adapters (model.lora.rank={rank}) hardly move at optim.lr={rate:g}"
    return [warning("adapter rate", message, "Set optim.lr=1e-4 or so, at least 1e-5.")]
