"""`onpol data list|prepare|verify`: the benches, building edit data sets, and what of them passes here.

Wires the catalogue and the Minimal Code Edit builder to options, a sandbox and a progress bar. Results go to
stdout, progress to stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.compose import compose
from onpol_cli.core.console import say, show, show_json, show_text, stderr
from onpol_cli.core.errors import OnpolError

if TYPE_CHECKING:
    from rich.table import Table

Tell = Callable[[int, int], None]
PLAIN_EVERY_S = 10.0


@dataclass
class PrepareRequest:
    """What `data prepare` was asked for; the fields are its options."""

    name: str
    source: str
    out: Path
    data: str | None = None
    families: str = "out-of-domain"
    max_corruptions: int = 20
    per_problem: int = 1
    limit: int = 0
    seed: int = 0
    exclude: str | None = None
    resume: bool = False
    as_json: bool = False


@contextmanager
def progress(title: str) -> Iterator[Tell]:
    """A callable that takes (done, total): a bar on a terminal, else a line every ten seconds, on stderr."""
    if sys.stderr.isatty():
        from rich.progress import Progress

        with Progress(console=stderr(), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = [time.perf_counter()]

    def tell(done: int, total: int) -> None:
        if done == total or time.perf_counter() - last[0] > PLAIN_EVERY_S:
            last[0] = time.perf_counter()
            say(f"{title}: {done}/{total}")

    yield tell


def list_data(*, as_json: bool) -> None:
    """Every bench: kind, size, licence, origin, and whether its data are here."""
    rows = [describe(name) for name in _names()]
    show_json({"benches": rows}) if as_json else show(data_table(rows))


def _names() -> list[str]:
    from onpol_cli.tasks.catalog import BENCHES

    return list(BENCHES)


def describe(name: str) -> dict[str, Any]:
    """What `data list` says of one bench; `data` is its file here, None where there is none. Asks no network."""
    from onpol_cli.tasks.catalog import BENCHES, how_to_get

    info = BENCHES[name]
    file = local_file(name)
    facts = {"name": name, "kind": info.kind, "problems": info.size, "licence": info.licence, "source": info.source}
    facts |= {"description": info.description, "generated": info.generated, "data": str(file) if file else None}
    return {**facts, "get": None if info.generated or file else how_to_get(info)}


def local_file(name: str) -> Path | None:
    """The bench's data file under $ONPOL_DATA or in the hub's cache."""
    import os

    from onpol_cli.tasks.catalog import BENCHES, DATA_ENV

    info = BENCHES[name]
    folder = os.environ.get(DATA_ENV)
    for file in info.files if folder else ():
        path = Path(str(folder)) / info.folder / file
        if path.is_file():
            return path
    return _cached(info.hub, info.hub_file) if info.hub else None


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def data_table(rows: list[dict[str, Any]]) -> Table:
    """The list as a table."""
    from rich.table import Table

    table = Table(caption="Folders of data files are found through $ONPOL_DATA.", caption_justify="left")
    for column in ("bench", "kind", "problems", "licence", "here", "description", "source"):
        table.add_column(column, justify="right" if column == "problems" else "left")
    for row in rows:
        here = "built in" if row["generated"] else "yes" if row["data"] else "no"
        words = [row["name"], row["kind"], str(row["problems"]), row["licence"], here]
        table.add_row(*words, row["description"], row["source"])
    return table


def prepare_data(request: PrepareRequest) -> None:
    """Build a Minimal Code Edit data set from a pool of correct programs.

    Raises:
        OnpolError: another data set is named, or source, families or files cannot be used.
    """
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.tasks.minimal_edit.prepare import PrepareOptions, prepare

    if request.name != "minimal-edit":
        raise OnpolError(f"Nothing to prepare for {request.name!r}; only minimal-edit is built. See 'onpol data list'.")
    options = PrepareOptions(
        request.source,
        request.families,
        max_corruptions=request.max_corruptions,
        per_problem=request.per_problem,
        seed=request.seed,
        limit=request.limit,
        data=existing(request.data, "--data"),
        exclude=existing(request.exclude, "--exclude"),
    )
    preload = _preload() if request.source not in ("leetcode", "mbpp") else []
    with Sandbox(compose().sandbox, preload) as sandbox, progress(f"preparing {request.out.name}") as tell:
        report = prepare(options, request.out, sandbox, resume=request.resume, progress=tell)
    found = {"file": str(request.out), **asdict(report)}
    if request.as_json:
        return show_json(found)
    say(f"{report.items} items of {report.problems} problems ({report.sources} looked at) in {report.seconds:.0f} s")
    for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1]):
        say(f"  {count} left out: {reason}")
    say(f"Train on it: onpol train tutor task=minimal-edit task.data={request.out} model.path=FOLDER")
    return show_text(str(request.out))


def existing(name: str | None, option: str) -> Path | None:
    """The file that an option names.

    Raises:
        OnpolError: there is no such file.
    """
    if name is None:
        return None
    path = Path(name).expanduser()
    if not path.exists():
        raise OnpolError(f"{option} {name}: no such file. Give the path of a data file.")
    return path


def _preload() -> list[str]:
    from onpol_cli.tasks.registry import preload_for

    return preload_for(["minimal-edit"])


def verify_data(file: Path, *, as_json: bool) -> None:
    """Run originals and corrupted programs of an edit data file; say what can be trusted here."""
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.tasks.minimal_edit.data import usable_file
    from onpol_cli.tasks.minimal_edit.verify import verify

    path = existing(str(file), "FILE")
    assert path is not None
    with Sandbox(compose().sandbox, _preload()) as sandbox, progress(f"verifying {path.name}") as tell:
        report = verify(path, sandbox, tell)
    if as_json:
        return show_json({"file": str(path), "usable_file": str(usable_file(path)), **asdict(report)})
    total = report.problems
    show_text(f"originals that pass here: {report.originals_passed} of {total}")
    show_text(f"corrupted programs that fail here: {report.corrupted_failed} of {total}")
    show_text(f"usable problems: {len(report.usable)} of {total} (listed in {usable_file(path)})")
    for name, count in sorted(report.missing.items()):
        say(f"  {count} want the module {name!r}, which is not installed (pip install 'onpol[bigcodebench]' may help)")
    return None
