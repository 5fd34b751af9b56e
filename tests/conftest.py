"""Shared by all tests: where the real data is, and a clean set of the variables that onpol reads."""

import os
from pathlib import Path

import pytest
from needed import missing

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data; missing data fails in CI and skips elsewhere."""
    folder = Path(os.environ.get("ONPOL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        missing(f"real data not found at {folder} (set ONPOL_DATA)")
    return folder


@pytest.fixture(autouse=True)
def no_onpol_variables(monkeypatch, tmp_path_factory):
    """No test sees switches that a shell or another test has set, nor what a user's cache remembers."""
    for name in ("ONPOL_DEBUG", "ONPOL_PLAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONPOL_CACHE", str(tmp_path_factory.mktemp("cache")))
