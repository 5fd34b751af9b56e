"""From a name to a task: the one place that knows which module implements what.

Owns names, the data file of each bench, and the modules that its sandbox preloads. Everything is imported
only when it is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path

from onpol_cli.core.config import TaskConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.catalog import BENCHES, download, locate_data
from onpol_cli.tasks.livecodebench.releases import HUB_ID, Filters, file_name, files_of, find_files, part_of
from onpol_cli.tasks.programs import Runner
from onpol_cli.tasks.protocol import Task

TASK_NAMES = ("tiny-edit", *BENCHES)
"""Every name that `build_task` takes. `tiny-edit` is for training; the others are benches too."""
DEFAULT_RELEASE = "v6"
"""LiveCodeBench problems when neither data nor release is given: the paper's 175."""


def check_name(name: str, allowed: Iterable[str] = TASK_NAMES) -> str:
    """`name` if it is known.

    Raises:
        OnpolError: it is not; the message lists the nearest names.
    """
    names = list(allowed)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise OnpolError(f"Unknown task or bench {name!r}. {hint}Allowed: {', '.join(names)}.")


def preload_for(names: Iterable[str]) -> list[str]:
    """Modules that the sandbox should import once for these tasks."""
    modules: list[str] = []
    for name in names:
        if name == "minimal-edit":
            from onpol_cli.tasks.minimal_edit.task import PRELOAD as edit

            modules += edit
        elif name == "livecodebench":
            from onpol_cli.tasks.livecodebench.program import PRELOAD as lcb

            modules += lcb
    return list(dict.fromkeys(modules))


def build_task(config: TaskConfig, sandbox: Runner, filters: Filters | None = None) -> Task:
    """The task called `config.name`.

    Args:
        config: name, data file, prompt condition, families, sizes. Without `data`, benches with a data
            file look under $ONPOL_DATA, then on the hub.
        sandbox: where answers run.
        filters: LiveCodeBench only.

    Raises:
        OnpolError: unknown name, data missing or not usable, or filters for a bench that has none.
    """
    name = check_name(config.name)
    if filters is not None and filters != Filters() and name != "livecodebench":
        raise OnpolError(f"--release, dates, --difficulty and --platform belong to livecodebench, not to {name}.")
    if name.startswith("tiny-"):
        return _tiny(name, config, sandbox)
    if name == "livecodebench":
        return _livecodebench(config, sandbox, filters or Filters())
    return _BUILDERS[name](config, sandbox)


def _tiny(name: str, config: TaskConfig, sandbox: Runner) -> Task:
    from onpol_cli.tasks.tiny_codegen import TinyCodegen
    from onpol_cli.tasks.tiny_edit import TinyEdit, build_bench

    if name == "tiny-codegen":
        return TinyCodegen(config, sandbox)
    return TinyEdit(config, sandbox) if name == "tiny-edit" else build_bench(name, config, sandbox)


def _minimal_edit(config: TaskConfig, sandbox: Runner) -> Task:
    from dataclasses import replace

    from onpol_cli.tasks.minimal_edit.task import minimal_edit

    return minimal_edit(replace(config, data=str(locate_data("minimal-edit", config.data))), sandbox)


def _humanevalfix(config: TaskConfig, sandbox: Runner) -> Task:
    from onpol_cli.tasks.humanevalfix import build
    from onpol_cli.tasks.minimal_edit.prompts import edit_prompts

    prompts = edit_prompts(config.prompt, config.shots, config.templates)
    return build(locate_data("humanevalfix", config.data), sandbox, prompts)


def _quixbugs(config: TaskConfig, sandbox: Runner) -> Task:
    from onpol_cli.tasks.minimal_edit.prompts import edit_prompts
    from onpol_cli.tasks.quixbugs import build

    prompts = edit_prompts(config.prompt, config.shots, config.templates)
    return build(locate_data("quixbugs", config.data), sandbox, prompts)


def _humaneval(config: TaskConfig, sandbox: Runner) -> Task:
    from onpol_cli.tasks.humaneval import build

    return build(locate_data("humaneval", config.data), sandbox)


def _mbpp(config: TaskConfig, sandbox: Runner) -> Task:
    from onpol_cli.tasks.mbpp import build

    return build(locate_data("mbpp", config.data), sandbox)


_BUILDERS: dict[str, Callable[[TaskConfig, Runner], Task]] = {
    "minimal-edit": _minimal_edit,
    "humanevalfix": _humanevalfix,
    "quixbugs": _quixbugs,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
}


def _livecodebench(config: TaskConfig, sandbox: Runner, filters: Filters) -> Task:
    from onpol_cli.tasks.livecodebench.data import load
    from onpol_cli.tasks.livecodebench.task import LiveCodeBench

    paths = _livecodebench_files(config.data, filters.release)
    problems = load(paths)
    chosen = problems
    if filters.release and config.data and not Path(config.data).expanduser().is_dir():
        chosen = [problem for problem in problems if part_of(paths[0], filters.release)(problem)]
    chosen = filters.apply(chosen)
    left_out = {problem.problem_id for problem in problems} - {problem.problem_id for problem in chosen}
    return LiveCodeBench(chosen, sandbox, frozenset(left_out))


def _livecodebench_files(data: str | None, release: str) -> list[Path]:
    """The files to read: a given file whole, a given folder by release, else $ONPOL_DATA or the hub."""
    if data:
        path = locate_data("livecodebench", data)
        return find_files(path, release or DEFAULT_RELEASE) if path.is_dir() else [path]
    if not release or release == DEFAULT_RELEASE:
        return [locate_data("livecodebench")]
    info = BENCHES["livecodebench"]
    assert info.hub == HUB_ID, "one address of the data"
    return [download(info, file_name(number)) for number in files_of(release)]
