"""Answers that came from elsewhere: `--answers FILE` for every bench.

Owns the accepted line formats, numbering of samples, and the check against the benches' problems. Reads
through `core.records` and grades nothing.

Accepted keys of one record (others are ignored):
  problem id: `problem_id`, `task_id` or `question_id`;
  answer: `completion` (a model's text, code is extracted from it), `solution` (code as it stands),
    `code_list` (LiveCodeBench: one code per sample, as it stands) or `output_list` (texts);
  optional: `sample` (number), `truncated` (the token limit cut it), `bench` (when one file serves several).
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import read_records, well_formed
from onpol_cli.core.types import Completion, Problem

_IDS = ("problem_id", "task_id", "question_id")
_TEXTS = ("completion", "solution", "code_list", "output_list")
_SHOWN = 5


@dataclass(frozen=True)
class Answer:
    """One completion of one problem, ready to be graded.

    Attributes:
        problem: what it answers.
        sample: its number within the problem.
        completion: the text.
        extra: further keys for its line of samples.jsonl (temperature, token ids, ...).
    """

    problem: Problem
    sample: int
    completion: Completion
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawAnswer:
    """One completion as read: not yet matched with a problem.

    Attributes:
        where: "file, record N", for messages.
        problem_id: the id that it claims.
        sample: its number.
        completion: the text.
        bench: the bench named by the record, "" for none.
    """

    where: str
    problem_id: str
    sample: int
    completion: Completion
    bench: str = ""


def read_answers(path: Path) -> list[RawAnswer]:
    """All answers of a .jsonl, .json or .parquet file (each also .gz), in file order.

    Raises:
        OnpolError: not readable, a record without id or answer, or (problem, sample) given twice.
    """
    answers: list[RawAnswer] = []
    counts: Counter[tuple[str, str]] = Counter()
    seen: dict[tuple[str, str, int], str] = {}
    for number, record in enumerate(read_records(path), 1):
        where = f"{path}, record {number}"
        for raw in _record(where, record, counts):
            key = (raw.bench, raw.problem_id, raw.sample)
            if key in seen:
                raise OnpolError(
                    f"{where}: problem {raw.problem_id!r}, sample {raw.sample} was already given in {seen[key]}. "
                    "Give each answer its own `sample` number, or leave `sample` out to have them counted."
                )
            seen[key] = where
            answers.append(raw)
    if not answers:
        raise OnpolError(f"{path} holds no answers. Give lines like {{'problem_id': ..., 'completion': ...}}.")
    return answers


def _record(where: str, record: Any, counts: Counter[tuple[str, str]]) -> Iterator[RawAnswer]:
    if not isinstance(record, Mapping):
        raise OnpolError(f"{where}: a {type(record).__name__}, not an object with a problem id and an answer.")
    name = next((key for key in _IDS if record.get(key) is not None), None)
    if name is None:
        raise OnpolError(f"{where}: no problem id. Allowed fields: {', '.join(_IDS)}.")
    problem_id, bench = str(record[name]), str(record.get("bench") or "")
    given = _sample(f"{where} ({problem_id})", record.get("sample"))
    for offset, completion in enumerate(_completions(f"{where} ({problem_id})", record)):
        count = counts[bench, problem_id]
        counts[bench, problem_id] += 1
        yield RawAnswer(where, problem_id, count if given is None else given + offset, completion, bench)


def _sample(where: str, given: Any) -> int | None:
    """The given number; tables with gaps (pandas, Parquet) hold whole numbers as floats and gaps as nan."""
    if given is None or given != given:
        return None
    whole = given == int(given) if isinstance(given, float) and abs(given) < 2**53 else isinstance(given, int)
    if isinstance(given, bool) or not whole or given < 0:
        raise OnpolError(f"{where}: sample must be a whole number from 0, got {given!r}.")
    return int(given)


def _completions(where: str, record: Mapping[str, Any]) -> list[Completion]:
    name = next((key for key in _TEXTS if record.get(key) is not None), None)
    if name is None:
        raise OnpolError(f"{where}: no answer. Allowed fields: {', '.join(_TEXTS)}.")
    value, truncated = record[name], bool(record.get("truncated", False))
    texts = list(value) if name.endswith("_list") and not isinstance(value, str) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise OnpolError(f"{where}: {name} must be text, got {type(text).__name__}.")
    return [Completion(well_formed(text), truncated, is_code=name in ("solution", "code_list")) for text in texts]


def match_answers(
    raws: Sequence[RawAnswer],
    benches: Mapping[str, Sequence[Problem]],
    *,
    partial: bool = False,
    left_out: Collection[str] = (),
) -> dict[str, list[Answer]]:
    """Answers by bench, in file order, after checking that they fit the problems.

    Args:
        raws: from `read_answers`.
        benches: the problems to be graded, by bench name.
        partial: allow problems without an answer (they count as `no_answer`).
        left_out: ids that the benches know but a filter removed: their answers are skipped.

    Raises:
        OnpolError: an answer for an unknown problem, or (without `partial`) a problem without an answer.
    """
    tables = {name: {problem.problem_id: problem for problem in problems} for name, problems in benches.items()}
    matched: dict[str, list[Answer]] = {name: [] for name in benches}
    for raw in raws:
        names = [name for name, table in tables.items() if raw.bench in ("", name) and raw.problem_id in table]
        if len(names) == 1:
            matched[names[0]].append(Answer(tables[names[0]][raw.problem_id], raw.sample, raw.completion))
        elif names:
            raise OnpolError(
                f"{raw.where}: problem {raw.problem_id!r} is in {' and '.join(names)}. Add a field `bench`."
            )
        elif raw.problem_id not in left_out and raw.bench in ("", *tables):
            raise _unknown(raw, tables)
    if not partial:
        for name, table in tables.items():
            _require_all(name, table, matched[name])
    return matched


def _unknown(raw: RawAnswer, tables: Mapping[str, Mapping[str, Problem]]) -> OnpolError:
    known = [problem_id for table in tables.values() for problem_id in table]
    near = difflib.get_close_matches(raw.problem_id, known, n=3) or known[:3]
    return OnpolError(
        f"{raw.where}: problem {raw.problem_id!r} is not in {' or '.join(tables)} ({len(known)} problems, such as "
        f"{', '.join(near)}). Check --bench, --data and the filters, or remove the record."
    )


def _require_all(name: str, table: Mapping[str, Problem], answers: Sequence[Answer]) -> None:
    missing = list(table.keys() - {answer.problem.problem_id for answer in answers})
    if missing:
        order = [problem_id for problem_id in table if problem_id in set(missing)]
        more = ", ..." if len(order) > _SHOWN else ""
        raise OnpolError(
            f"{name}: {len(order)} of {len(table)} problems have no answer ({', '.join(order[:_SHOWN])}{more}). "
            "Add them, or grade what is there with --partial (the missing count as no_answer)."
        )
