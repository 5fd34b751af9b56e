"""Running untrusted code: jobs in, verdicts out. See `jobs` for the nouns and `pool` for `Sandbox`."""

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

__all__ = [
    "AssertJob",
    "CallJob",
    "Job",
    "Limits",
    "ReferenceJob",
    "ReferenceResults",
    "Status",
    "StdinJob",
    "UnittestJob",
    "Verdict",
]
