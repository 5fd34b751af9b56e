"""`onpol compare`: which evaluations, where the output goes, what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onpol_cli.core.compose import compose
from onpol_cli.core.console import say, show, show_json, show_text
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.settings import conf_dir
from onpol_cli.runs.lookup import find_run, list_runs
from onpol_cli.runs.rundir import SAMPLES

if TYPE_CHECKING:
    from onpol_cli.comparison.compare import Comparison


@dataclass
class CompareRequest:
    """What the command line asked for."""

    names: Sequence[str] = ()
    html: Path | None = None
    out: Path | None = None
    formats: str = "csv,md,json"
    claims: str = "paper"
    runs_dir: Path | None = None
    as_json: bool = False
    force: bool = False
    dry_run: bool = False
    note: str = ""


def run_comparison(request: CompareRequest) -> None:
    """Compare and show; files where --out or --html say."""
    from onpol_cli.comparison.compare import compare

    paths = chosen(request)
    if request.dry_run:
        show_text("\n".join(str(path) for path in paths))
        return
    formats = [word.strip() for word in request.formats.split(",") if word.strip()]
    comparison = compare(paths, claims_file(request.claims), force=request.force)
    if request.note:
        comparison.provenance = f"{request.note} {comparison.provenance}"
    if request.out is not None:
        comparison.write(request.out, formats)
    if request.html is not None:
        comparison.write_html(request.html)
    present(comparison, request)


def present(comparison: Comparison, request: CompareRequest) -> None:
    """Tables or JSON on stdout, the files' places on stderr."""
    if request.as_json:
        show_json(comparison.json())
        return
    if request.note:
        show_text(request.note)
    show(comparison.terminal())
    if request.out is not None:
        say(f"Tables and plots: {request.out}")
    if request.html is not None:
        say(f"Report: {request.html}")


def chosen(request: CompareRequest) -> list[Path]:
    """Directories of the named runs, or of every finished evaluation.

    Raises:
        OnpolError: nothing to compare.
    """
    root = request.runs_dir or Path(compose().paths.runs)
    if request.names:
        return [find_run(name, root).path for name in request.names]
    done = [info for info in list_runs(root) if info.status == "done" and (info.path / SAMPLES).is_file()]
    found = [info.path for info in done if "answers" not in info.manifest]  # of models, not of a file
    if not found:
        raise OnpolError(
            f"No finished evaluation in {root}. Make some: onpol reproduce tiny --quick, or onpol eval --bench NAME."
        )
    return found


def claims_file(name: str) -> Path | None:
    """The YAML of a claims group choice, or a user's own file; `none` judges nothing.

    Raises:
        OnpolError: neither exists.
    """
    if name == "none":
        return None
    own = Path(name)
    packaged = conf_dir() / "claims" / f"{name}.yaml"
    for file in (own, packaged):
        if file.is_file():
            return file
    choices = ", ".join(sorted(item.stem for item in packaged.parent.glob("*.yaml")))
    raise OnpolError(f"No claims named {name!r}: neither a file nor one of {choices}, none.")
