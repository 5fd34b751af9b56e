"""The command line's surface: help with examples, exit states, JSON and nothing else, completion."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from onpol_cli import __version__, completion
from onpol_cli.cli import app
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.overrides import check_overrides
from onpol_cli.process import OUT_OF_MEMORY, run
from onpol_cli.runs.rundir import RunDir
from onpol_cli.tasks.catalog import BENCHES

ROOT: Any = typer.main.get_command(app)


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(leaves(ROOT))


def test_the_commands_are_those_of_the_design() -> None:
    assert set(COMMANDS) == {
        "train tutor", "train base", "distill student", "eval", "compare", "reproduce", "sweep", "replay", "doctor",
        "data list", "data prepare", "data verify", "runs list", "runs show", "runs watch", "runs prune",
        "bench estimators",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.epilog and command.epilog.startswith("Example: onpol " + name)
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_is_explained(name: str) -> None:
    bare = [parameter.name for parameter in COMMANDS[name].params if not getattr(parameter, "help", None)]
    assert bare == []
    usage = COMMANDS[name].get_usage(COMMANDS[name].make_context(name, [], resilient_parsing=True))
    assert "[[" not in usage, usage


def test_help_lists_the_first_steps_first() -> None:
    listed = ROOT.list_commands(None)
    assert listed[:5] == ["reproduce", "train", "distill", "eval", "compare"] and set(listed) == set(ROOT.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_valid_call(name: str) -> None:
    for example in COMMANDS[name].epilog.removeprefix("Example: ").split("; "):
        words = shlex.split(example)[1 + len(name.split()) :]
        context = COMMANDS[name].make_context(name, list(words), resilient_parsing=False)
        overrides = context.params.get("overrides") or []
        check_overrides(overrides, sweep=name == "sweep")


def test_help_goes_to_stdout_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["distill", "student", "--help"]) == 0
    out, err = capsys.readouterr()
    assert "tutor=latest:sft" in out and err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["--version"]) == 0
    assert capsys.readouterr().out == f"onpol {__version__}\n"


def failing(error: BaseException) -> typer.Typer:
    """An application whose only command raises."""
    small = typer.Typer(pretty_exceptions_enable=False)

    @small.command()
    def boom() -> None:
        raise error

    return small


ERRORS = {
    "usage": (OnpolError("Wrong."), 2, "onpol: Wrong.\n"),
    "failed": (RunFailed("Broke."), 1, "onpol: Broke.\n"),
    "interrupted": (KeyboardInterrupt("Stopped after step 3."), 130, "onpol: Stopped after step 3.\n"),
    "memory": (MemoryError(), 1, f"onpol: {OUT_OF_MEMORY}\n"),
    "cuda memory": (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, f"onpol: {OUT_OF_MEMORY}\n"),
    "abort": (click.exceptions.Abort(), 130, "onpol: Interrupted.\n"),
    "exit": (click.exceptions.Exit(3), 3, ""),
    "bug": (
        ZeroDivisionError("division by zero"),
        1,
        "onpol: ZeroDivisionError: division by zero (this is a bug of onpol; repeat with --debug for the traceback)\n",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_become_one_line_and_an_exit_state(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, status, text = ERRORS[kind]
    assert run(failing(error), []) == status
    assert capsys.readouterr().err == text


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(OnpolError, match="Wrong"):
        run(failing(OnpolError("Wrong.")), ["--debug"])


def test_completion_offers_runs_and_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDir.open(tmp_path / "results" / "runs" / "train-sft-s0", resume=False) as made:
        made.update_manifest(run="train-sft-s0", method_choice="sft", status="done")
    assert completion.runs("") == ["train-sft-s0", "latest:sft"]
    assert completion.runs("lat") == ["latest:sft"] and completion.runs("x") == []
    assert completion.overrides("tutor=tr") == ["tutor=train-sft-s0"]


def test_completion_offers_settings_groups_benches_and_experiments() -> None:
    assert "optim.lr=" in completion.overrides("opt") and "method=" in completion.overrides("me")
    assert "method=opd-exact" in completion.overrides("method=opd")
    assert completion.benches("tiny-c") == ["tiny-codegen"] and "tiny" in completion.experiments("t")


def test_completion_knows_every_bench() -> None:
    assert set(completion.BENCHES) == set(BENCHES)


def test_json_output_is_one_object_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["runs", "list", "--runs", str(tmp_path), "--json"], ["data", "list", "--json"]):
        assert run(app, words) == 0
        json.loads(capsys.readouterr().out)
