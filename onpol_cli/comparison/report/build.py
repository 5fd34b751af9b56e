"""Assembles the report: tables and claims as HTML, plots as inline SVG, problems as packed JSON.

Everything that a model wrote travels only inside the data block, deflated and in base 64, and reaches the page
through textContent (assets/report.js). The content policy allows exactly the shipped script and style by
hash and no request at all. Owns the page; numbers come from frames and tables.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from onpol_cli.comparison.frames import Frame, p_value, ranged, to_resolve
from onpol_cli.comparison.records import Answer, EvalRun
from onpol_cli.comparison.render import plain
from onpol_cli.comparison.scores import Scores
from onpol_cli.comparison.tables import Rows
from onpol_cli.core.types import Outcome

SHORT = 34
"""Cells up to this many characters are never broken over lines."""
_TAG = re.compile(r"<[^>]*>")
_CELL = re.compile(r"^([+-]?[\d.]+) (\[[^\]]*\])(.*)$")


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Attributes:
        frames: tables by section title, in order.
        claims: rows of `tables.claim_rows`.
        plots: (name, caption, svg text) in order.
        warnings: printed at the top (--force).
        footer: how and from what this was made.
        roles: which benches the claims mean.
    """

    title: str
    scores: Scores
    frames: Mapping[str, Sequence[Frame]]
    claims: Rows
    plots: Sequence[tuple[str, str, str]]
    warnings: Sequence[str] = ()
    footer: str = ""
    roles: str = ""


def build(page: Page) -> str:
    """The whole file as text."""
    assets = files("onpol_cli.comparison.report") / "assets"
    template, script, style = (
        (assets / name).read_text(encoding="utf-8") for name in ("report.html", "report.js", "report.css")
    )
    sections = _sections(page)
    values = {
        "TITLE": escape(page.title),
        "STYLE": style,
        "SCRIPT": script,
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "NAVIGATION": "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in [*sections, _BROWSER]),
        "WARNINGS": "".join(f'<p class="warning" role="alert">WARNING {escape(text)}</p>' for text in page.warnings),
        "LEAD": escape(_lead(page)),
        "SECTIONS": "\n".join(_section(*section) for section in sections),
        "BROWSER_NOTE": escape(_BROWSER_NOTE.format(heat=page.scores.headline)),
        "FOOTER": escape(page.footer),
        "DATA": pack(browser_data(page.scores)),
    }
    # One pass: a placeholder inside a value is never replaced.
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda match: values[match[1]], template)


_BROWSER = ("problems", "Problems", "")
_BROWSER_NOTE = (
    "Each model's answer at temperature {heat:g}, marked against the corrupted program: red was taken out, "
    "green put in. Arrow keys move in the list."
)


def pack(value: Any) -> str:
    """JSON, deflated (zlib), in base 64: a few per cent of its size, and text that cannot end a script element."""
    text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate, which a tokenizer can make of half a character, is no UTF-8; the page shows its escape.
    return base64.b64encode(zlib.compress(text.encode("utf-8", "backslashreplace"), 9)).decode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _lead(page: Page) -> str:
    runs, labels = page.scores.runs, page.scores.labels
    benches = ", ".join(page.scores.benches)
    seeds = len({run.seed for run in runs if not run.is_base}) or 1
    answers = sum(len(run.answers) for run in runs)
    counted = f"{len(labels)} models, {seeds} {'seed' if seeds == 1 else 'seeds'}, {answers:,} graded answers"
    return f"{counted} on {benches}. Brackets are 95% intervals; every difference is paired per problem."


def _sections(page: Page) -> list[tuple[str, str, str]]:
    """(anchor, title, html) of everything above the problem browser."""
    made = []
    for title, frames in page.frames.items():
        if title == "Scores":
            made.append(("scores", title, "".join(map(table, frames))))
            if page.claims:
                made.append(("claims", "Claims", _claims(page.claims, page.roles)))
            if page.plots:
                made.append(("plots", "Plots", _plots(page.plots)))
        elif frames:
            made.append((title.lower().replace(" ", "-"), title, "".join(map(table, frames))))
    made.append(("configuration", "Configuration", "".join(map(_configuration, page.scores.runs))))
    return made


def _section(key: str, title: str, body: str) -> str:
    heading = f'<h2 id="{key}-title">{escape(title)}</h2>'
    return f'<section id="{key}" aria-labelledby="{key}-title">{heading}{body}</section>'


def table(frame: Frame) -> str:
    """A sortable table; rows that detail the one above move with it."""
    body = "".join(_row(map(_cell, row), minor=i in frame.minor) for i, row in enumerate(frame.rows))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in frame.notes)
    return (
        f'<h3 id="table-{escape(frame.name)}">{escape(frame.title)}</h3><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(frame.title)}"><table class="sortable" data-name="{escape(frame.name)}">'
        f"{_head(frame.columns)}<tbody>{body}</tbody></table></div>{notes}"
    )


def _head(names: Iterable[str]) -> str:
    cells = (f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _row(cells: Iterable[str], *, minor: bool = False) -> str:
    opening = '<tr class="minor">' if minor else "<tr>"
    tagged = (f'<td class="short">{c}</td>' if len(_TAG.sub("", c)) <= SHORT else f"<td>{c}</td>" for c in cells)
    return f"{opening}{''.join(tagged)}</tr>"


def _cell(text: str) -> str:
    found = _CELL.match(text)
    if not found:
        return escape(text.strip())
    value, interval, rest = (escape(part) for part in found.groups())
    return f'<span class="score">{value}</span> <span class="range">{interval}{rest}</span>'


def _claims(rows: Rows, roles: str) -> str:
    parts = []
    for claim in dict.fromkeys(row["claim"] for row in rows):
        group = [row for row in rows if row["claim"] == claim]
        verdict = group[0]["claim_verdict"]
        head = _head(("statement", "verdict", "effect", "p", "p (Holm)", "n", "seeds", "note"))
        parts.append(
            f'<article class="claim"><h3><span>{escape(group[0]["text"])}</span> {_badge(verdict)}</h3>'
            f'<div class="scroll" tabindex="0"><table class="sortable">{head}'
            f"<tbody>{''.join(map(_statement, group))}</tbody></table></div></article>"
        )
    return "".join(parts) + (
        '<p class="note">Effect: left − right. A statement is decided by its 95% interval, equivalence by two '
        "one-sided tests at 5%. Verdicts are not corrected for their number; p (Holm) is."
        f"{escape(f' Benches: {roles}.' if roles else '')}</p>"
    )


def _statement(row: dict[str, Any]) -> str:
    unit = "methods" if row["kind"] == "association" else "problems"
    wanted = to_resolve(row, unit)
    notes = [f"premise supported: {row['premise']}"] if row["premise_verdict"] == "supported" else []
    notes += [row["note"], f"to resolve: {wanted}" if row["verdict"] == "unresolved" and wanted != "–" else ""]
    cells = [
        escape(row["statement"]), _badge(row["verdict"]), _cell(ranged(row, sign=True, key="effect")),
        escape(p_value(row["p"])), escape(p_value(row["p_holm"])), str(row["n"] or "–"), str(row["seeds"] or "–"),
        escape("; ".join(filter(None, notes))),
    ]  # fmt: skip
    return _row(cells)


def _badge(word: str) -> str:
    return f'<span class="badge {escape(word.split()[0])}">{escape(word)}</span>'


def _plots(plots: Sequence[tuple[str, str, str]]) -> str:
    drawn = "".join(
        f'<figure id="plot-{name}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'
        for name, caption, svg in plots
    )
    return f'<div class="plots">{drawn}</div>'


_FACTS = (
    "run", "command", "git_commit", "dirty", "eval_settings", "hashes", "versions", "hardware", "wall_s", "status",
)  # fmt: skip


def _configuration(run: EvalRun) -> str:
    text = f"# evaluation {run.name}\n{_facts(run.manifest)}\n"
    if run.train is not None:
        text += f"\n# training {run.train.name}\n{_facts(run.train.manifest)}\n\n{run.train.config}"
    elif run.config:
        text += f"\n{run.config}"
    return f"<details><summary>{escape(run.key)}</summary><pre>{escape(text)}</pre></details>"


def _facts(manifest: Mapping[str, Any]) -> str:
    return json.dumps({key: manifest[key] for key in _FACTS if key in manifest}, indent=2, ensure_ascii=False)


DIGITS = 6
"""Decimals of rewards and distances in the browser, which shows three."""


class _Texts:
    """Every different text once; problems and answers refer to it by number."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def __call__(self, text: str | None) -> int | None:
        return None if text is None else self.number.setdefault(text, len(self.number))


def browser_data(scores: Scores) -> dict[str, Any]:
    """Problems, and per run an array of answers in the same order (null where there is none).

    Programs and answers repeat a lot (models copy what they were given), so they are numbers into `texts`.
    """
    facts: dict[tuple[str, str], Mapping[str, Any]] = {}
    keys: dict[tuple[str, str], None] = {}
    for run in scores.runs:
        facts.update(run.problems)
        keys.update(dict.fromkeys((a.bench, a.problem_id) for a in run.answers))
    families = sorted({str(f) for key in keys for f in (facts.get(key, {}).get("families") or ())})
    texts = _Texts()
    return {
        "models": [run.key for run in scores.runs],
        "shown": [next(i for i, run in enumerate(scores.runs) if run.label == label) for label in scores.labels],
        "benches": scores.benches,
        "families": families,
        "outcomes": [outcome.value for outcome in Outcome],
        "problems": [_problem(key, facts.get(key, {}), scores.benches, families, texts) for key in keys],
        "answers": [_answers(run, list(keys), scores.headline, texts) for run in scores.runs],
        "texts": list(texts.number),
    }


def _problem(
    key: tuple[str, str], facts: Mapping[str, Any], benches: Sequence[str], families: Sequence[str], texts: _Texts
) -> dict[str, Any]:
    bench, name = key
    return {
        "bench": benches.index(bench), "id": name, "statement": texts(facts.get("statement") or ""),
        "original": texts(facts.get("original")), "corrupted": texts(facts.get("corrupted")),
        "families": [families.index(str(f)) for f in facts.get("families") or ()],
    }  # fmt: skip


def _answers(run: EvalRun, keys: Sequence[tuple[str, str]], heat: float, texts: _Texts) -> list[list[Any] | None]:
    codes = {outcome.value: i for i, outcome in enumerate(Outcome)}
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in run.answers:
        if answer.temperature == heat:
            groups.setdefault((answer.bench, answer.problem_id), []).append(answer)
    column: list[list[Any] | None] = []
    for key in keys:
        group = sorted(groups.get(key, ()), key=lambda a: a.sample)
        if not group:
            column.append(None)
            continue
        a = group[0]
        numbers = [None if x is None else round(x, DIGITS) for x in (a.reward, a.excess, a.added_cc)]
        passed = sum(one.passed for one in group)
        column.append([codes[a.outcome], *numbers, texts(a.completion), texts(a.code), passed, len(group)])
    return column
