"""The two errors that a user of onpol meets.

A message says what, what was got, what is allowed, and what to do next. Broken invariants of
onpol itself are `assert`s, never one of these.
"""


class OnpolError(ValueError):
    """A mistake in usage or input. The command line prints the message and exits 2."""


class RunFailed(OnpolError):
    """A run that started correctly and could not finish. The command line exits 1."""
