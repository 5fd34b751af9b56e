"""Versions of installed packages, and what counts as a release."""

import numpy

from onpol_cli.core.packages import installed_version, release


def test_the_first_installed_distribution_counts():
    assert installed_version("no-such-package", "numpy") == numpy.__version__
    assert installed_version("no-such-package") is None


def test_releases():
    assert release("0.32.0") == (0, 32) and release("0.31.0+cpu") == (0, 31) and release("2.13.0rc1") == (2, 13)
    assert release(None) is None and release("0.1.dev9+gabc") is None and release("main") is None
