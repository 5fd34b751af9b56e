"""Which versions of other packages are installed, without importing them."""

from __future__ import annotations

import importlib.metadata
import re


def installed_version(*names: str) -> str | None:
    """Version of the first installed distribution of `names`; None if there is none."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def release(version: str | None) -> tuple[int, int] | None:
    """Major and minor number; None for no version and for builds between releases, whose numbers say nothing."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return None if found is None or ".dev" in str(version) else (int(found[1]), int(found[2]))
