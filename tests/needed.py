"""What a test does without something that it needs."""

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """A failure in CI, where everything must be there; a skip with `reason` elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
