"""`onpol compare`: from run directories to tables, verdicts, files and the report.

Owns the order of work and the output folder. Callers (the command line, `reproduce`) print what
`Comparison` holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.comparison import frames, ledger, tables
from onpol_cli.comparison.claims import load_claims
from onpol_cli.comparison.compatible import check_compatible, without_doubles
from onpol_cli.comparison.forgetting import Forgetting, divergence_rows, forgetting, update_rows
from onpol_cli.comparison.frames import Frame
from onpol_cli.comparison.judge import JudgedClaim, judge
from onpol_cli.comparison.records import TrainRun, read_runs
from onpol_cli.comparison.render import plain, to_csv, to_latex, to_markdown, to_rich
from onpol_cli.comparison.scores import Scores
from onpol_cli.comparison.tables import Rows
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Group

NAMED_RUNS = 6
"""More evaluations are only counted under the tables; the JSON names all."""
FORMATS = ("csv", "md", "tex", "json", "png", "svg")


@dataclass
class Comparison:
    """Everything that a set of runs shows; expensive parts are made when first asked for."""

    scores: Scores
    judged: Sequence[JudgedClaim]
    warnings: Sequence[str] = ()
    unevaluated: Sequence[TrainRun] = ()
    provenance: str = ""
    files: list[Path] = field(default_factory=list)

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Numbers of every table, by file name."""
        made = {
            "scores": tables.score_rows(self.scores),
            "usable": tables.usable_rows(self.scores),
            "differences": tables.difference_rows(self.scores),
            "claims": tables.claim_rows(self.judged),
            "forgetting": [_lost_and_won(item) for item in self.forgotten],
            "divergence": divergence_rows(self.scores.runs),
            "update": update_rows(self.scores.runs),
            "curves": tables.curve_rows(self.scores),
            "costs": ledger.by_label(ledger.costs(self.scores, self.unevaluated)),
            "outcomes": tables.outcome_rows(self.scores),
            "families": tables.family_rows(self.scores),
        }
        return {name: rows for name, rows in made.items() if rows}

    @cached_property
    def forgotten(self) -> list[Forgetting]:
        """Change against the base on what was not trained."""
        return forgetting(self.scores)

    @cached_property
    def sections(self) -> dict[str, list[Frame]]:
        """Tables of text by section."""
        rows = self.rows
        makers = {
            "Scores": lambda: [
                *frames.paper_frames(self.scores, rows["scores"]), *frames.usable_frames(rows.get("usable", [])),
            ],
            "Differences": lambda: _one(rows, "differences", lambda r: frames.difference_frame(r, brief=False)),
            "Training": lambda: _one(rows, "curves", frames.curve_frame),
            "Forgetting": lambda: [
                *([frames.forgetting_frame(self.forgotten)] if self.forgotten else []),
                *_one(rows, "divergence", frames.divergence_frame),
                *_one(rows, "update", frames.update_frame),
            ],
            "Costs": lambda: [
                *_one(rows, "costs", frames.cost_frame),
                *filter(None, [frames.reach_frame(rows.get("costs", []))]),
            ],
            "Outcomes": lambda: [
                *_one(rows, "outcomes", frames.outcome_frame), *_one(rows, "families", frames.family_frame),
            ],
        }  # fmt: skip
        return {title: make() for title, make in makers.items()}

    def terminal(self) -> Group:
        """The brief tables as one rich renderable."""
        from rich.console import Group

        shown = [frame for frame in self.sections["Scores"] if frame.brief]
        if "differences" in self.rows:
            rows, note = frames.headline_rows(frames.brief_rows(self.scores, self.rows["differences"]))
            shown.append(frames.difference_frame(rows, brief=True, note=note))
        if "claims" in self.rows:
            shown.append(frames.claim_frame(self.rows["claims"], self.roles))
        shown += [frame for frame in self.sections["Costs"] if frame.brief]
        return Group(*(to_rich(frame, self.warnings) for frame in shown))

    def json(self) -> dict[str, Any]:
        """The object of `--json`: models as in the run-directory contract, then everything else."""
        rows = self.rows
        models = tables.model_objects(self.scores, rows["scores"], rows["outcomes"])
        rest = {name: value for name, value in rows.items() if name not in ("scores", "outcomes")}
        whole = plain({"models": models, "warnings": list(self.warnings), "provenance": self.provenance, **rest})
        assert isinstance(whole, dict)
        return whole

    @cached_property
    def figures(self) -> dict[str, Any]:
        """matplotlib figures by name."""
        from onpol_cli.comparison.plots import draw_all

        return draw_all(self.scores, self.rows["scores"], self.rows.get("families", []))

    def html(self, title: str = "onpol comparison") -> str:
        """The self-contained report."""
        from onpol_cli.comparison.plots import CAPTIONS, encode
        from onpol_cli.comparison.report.build import Page, build
        from onpol_cli.comparison.report.svg import page_svg

        plots = [
            (name, CAPTIONS[name], page_svg(encode(figure, "svg"), name, CAPTIONS[name]))
            for name, figure in self.figures.items()
        ]
        claims = self.rows.get("claims", [])
        return build(Page(title, self.scores, self.sections, claims, plots, self.warnings, self.provenance, self.roles))

    def _printed(self) -> list[Frame]:
        """Tables of the Markdown and LaTeX files; of the differences those with the base and of students and tutors."""
        whole = [frame for title, group in self.sections.items() if title != "Differences" for frame in group]
        at = len(self.sections["Scores"])
        if "differences" in self.rows:
            note = "All other pairs: differences.csv and the report."
            rows = frames.brief_rows(self.scores, self.rows["differences"])
            whole.insert(at, frames.difference_frame(rows, brief=True, note=note))
        if "claims" in self.rows:
            whole.insert(0, frames.claim_frame(self.rows["claims"], self.roles))
        return whole

    @property
    def roles(self) -> str:
        """Which benches the claims mean by their roles."""
        pairs = (("edit", self.scores.edit_benches), ("forgetting", self.scores.other_benches))
        return "; ".join(f"{role}: {benches[0]}" for role, benches in pairs if benches)

    def write(self, out: Path, formats: Iterable[str]) -> list[Path]:
        """Write the chosen formats into `out`; returns the files."""
        written: list[Path] = []
        whole = self._printed() if {"md", "tex"} & set(formats) else []
        texts: dict[str, str] = {}
        for kind in formats:
            if kind == "csv":
                texts |= {f"{name}.csv": to_csv(rows) for name, rows in self.rows.items()}
            elif kind == "md":
                body = "\n".join(to_markdown(frame, self.warnings) for frame in whole)
                texts["comparison.md"] = f"# Comparison\n\n{self.provenance}\n\n{body}"
            elif kind == "tex":
                texts["comparison.tex"] = "\n".join(to_latex(frame, self.warnings) for frame in whole)
            elif kind == "json":
                texts["comparison.json"] = json.dumps(self.json(), indent=1, ensure_ascii=False) + "\n"
            else:
                written += self._draw(out / "plots", kind)
        for name, text in texts.items():
            write_atomic(out / name, text)
            written.append(out / name)
        self.files += written
        return written

    def write_html(self, path: Path, title: str = "onpol comparison") -> Path:
        """Write the report to `path`."""
        write_atomic(path, self.html(title))
        self.files.append(path)
        return path

    def _draw(self, folder: Path, kind: str) -> list[Path]:
        from onpol_cli.comparison.plots import encode

        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, figure in self.figures.items():
            path = folder / f"{name}.{kind}"
            path.write_bytes(encode(figure, kind))
            paths.append(path)
        return paths


def compare(
    run_dirs: Iterable[Path],
    claims: Any = None,
    out: Path | None = None,
    formats: Sequence[str] = (),
    *,
    force: bool = False,
    html: Path | None = None,
) -> Comparison:
    """Read, check, judge; write what is asked for.

    Args:
        run_dirs: evaluation runs (training runs may be among them: they enter the ledger).
        claims: a claims file, the composed `claims` group, or None for no verdicts.
        out: folder for `formats` (csv, md, tex, json, png, svg).
        force: print incompatibilities into the tables instead of refusing.
        html: where to write the report.

    Raises:
        OnpolError: unknown format, unreadable runs, runs that must not share a table, a malformed claim.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise OnpolError(f"Unknown format {unknown[0]!r}; allowed: {', '.join(FORMATS)}. The report: --html FILE.")
    statements = load_claims(claims)
    runs, unevaluated = read_runs(Path(p) for p in run_dirs)
    warnings = check_compatible(runs, force=force)
    scores = Scores(without_doubles(runs))
    comparison = Comparison(scores, judge(statements, scores), warnings, unevaluated, _provenance(scores))
    if out is not None and formats:
        comparison.write(Path(out), formats)
    if html is not None:
        comparison.write_html(Path(html))
    return comparison


def _provenance(scores: Scores) -> str:
    commits = {
        f"{str(run.manifest['git_commit'])[:12]}{' (modified)' if run.manifest.get('dirty') else ''}"
        for run in scores.runs
        if run.manifest.get("git_commit")
    }
    names = ", ".join(run.name for run in scores.runs)
    if len(scores.runs) > NAMED_RUNS:
        names = f"{len(scores.runs)} evaluations of {', '.join(scores.labels)}"
    return f"Made by onpol compare from {names}; code of the evaluations: {', '.join(sorted(commits)) or 'unknown'}."


def _lost_and_won(item: Forgetting) -> dict[str, Any]:
    e = item.change.estimate
    return {
        "model": item.label, "bench": item.bench, "value": e.value, "low": e.low, "high": e.high, "n": e.n,
        "p": item.change.p, "lost": " ".join(item.lost), "won": " ".join(item.won),
    }  # fmt: skip


def _one(rows: dict[str, Rows], name: str, make: Any) -> list[Frame]:
    return [make(rows[name])] if name in rows else []
