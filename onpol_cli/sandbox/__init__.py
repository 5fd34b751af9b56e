"""Running untrusted code: jobs in, verdicts out. See `jobs` for the nouns and `pool` for `Sandbox`."""

from onpol_cli.sandbox.isolation import isolation_level
from onpol_cli.sandbox.jobs import (
    AssertJob,
    CallJob,
    Job,
    Limits,
    ReferenceJob,
    ReferenceResults,
    Status,
    StdinJob,
    UnittestJob,
    Verdict,
)
from onpol_cli.sandbox.pool import Sandbox

__all__ = [
    "AssertJob",
    "CallJob",
    "Job",
    "Limits",
    "ReferenceJob",
    "ReferenceResults",
    "Sandbox",
    "Status",
    "StdinJob",
    "UnittestJob",
    "Verdict",
    "isolation_level",
]
