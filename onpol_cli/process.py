"""The process boundary: every error becomes one line and an exit status.

`--debug` anywhere on the command line (or ONPOL_DEBUG=1) shows the traceback instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from onpol_cli.core.console import fail, setup_logging
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.training.interrupt import ended_in_order

OUT_OF_MEMORY = (
    "Out of memory. Lower learner.micro_tokens, rollout.max_batch or rollout.gpu_memory, or set "
    "learner.gradient_checkpointing=true; 'onpol doctor --plan' estimates what is needed. The run can be resumed."
)

MISSING = {
    "benches": "Which bench? Add --bench NAME, once for each; 'onpol data list' names them.",
    "experiment": "Which experiment? One of tiny, small, paper: onpol reproduce tiny --quick.",
    "command": "Which command? In quotes: onpol sweep \"distill student\" tutor=latest:sft seed=1,2.",
    "run": "Which run? Its name, a unique start of it, or latest:METHOD; 'onpol runs list' names them.",
}
"""What is asked for where an argument is missing, by parameter."""


def run(app: Any, words: Sequence[str]) -> int:
    """Run a Typer application on `words`; returns the exit status."""
    debug = "--debug" in words or bool(os.environ.get("ONPOL_DEBUG"))
    words = [word for word in words if word != "--debug"]
    setup_logging()
    try:
        with ended_in_order():
            return _status(_invoke(app, words))
    except KeyboardInterrupt as error:
        fail(str(error) or "Interrupted.")
        return 130
    except BaseException as error:  # the process boundary
        return _explain(error, debug)


def _invoke(app: Any, words: Sequence[str]) -> Any:
    """Run the application, not through its `main`, which swallows what a KeyboardInterrupt says."""
    import typer

    if "_ONPOL_COMPLETE" in os.environ:  # the shell asks for completions: `main` answers
        return app(args=list(words), prog_name="onpol")
    command = typer.main.get_command(app)
    with command.make_context("onpol", list(words)) as context:
        return command.invoke(context)


def _status(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _explain(error: BaseException, debug: bool) -> int:
    if isinstance(error, SystemExit):
        return _status(error.code)
    kind = type(error).__name__  # typer may carry a click of its own, so that its classes are known by name only
    if kind == "Exit":
        return int(getattr(error, "exit_code", 1))
    if kind == "Abort":
        fail("Interrupted.")
        return 130
    if kind == "NoArgsIsHelpError":  # the help has been printed
        return 2
    if hasattr(error, "format_message"):
        return _usage(error)
    if debug:
        raise error
    if isinstance(error, OnpolError):
        fail(str(error))
        return 1 if isinstance(error, RunFailed) else 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        fail(OUT_OF_MEMORY)
        return 1
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    fail(f"{type(error).__name__}: {_one_line(error)} (this is a bug of onpol; repeat with --debug for the traceback)")
    return 1


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    where = f" See '{context.command_path} --help'." if context is not None else ""
    fail(f"{_usage_text(error)}{where}")
    return int(error.exit_code)


def _usage_text(error: Any) -> str:
    """Click's message; an unknown option that is a setting (`--seed 1`) is answered with the setting's spelling."""
    from onpol_cli.core.settings import groups, keys, nearest

    if type(error).__name__ == "MissingParameter" and error.param is not None and error.param.name in MISSING:
        return MISSING[error.param.name]
    option = getattr(error, "option_name", None)
    if option and type(error).__name__ == "NoSuchOption":
        name = str(option).lstrip("-").replace("-", "_")
        known = [*groups(), *keys()]
        close = [name] if name in known else nearest(name, known, 1)
        exact = [key for key in close if key.rsplit(".", 1)[-1] == name]
        close = exact if error.possibilities else close
        if close:
            return f"No such option {option}. Settings have no dashes: {close[0]}=VALUE."
    return str(error.format_message())


def _one_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
