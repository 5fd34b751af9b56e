"""Files of edit problems: the published 400-task file, and what `prepare` writes.

Owns the field names of both and what is said of a record that lacks one. Builds `Problem`s; runs
nothing, and decides nothing about splits (see `task`).
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import Record, check_unique, read_records, require_fields
from onpol_cli.core.types import Problem
from onpol_cli.tasks.minimal_edit.originals import remembered
from onpol_cli.tasks.minimal_edit.testing import KINDS, EditTests, parameters_of

PUBLISHED = {"task_id": str, "prompt": str, "canonical_solution": str, "corrupted_solution": str, "test_code": str}
"""Fields of the published evaluation file, beside `mutation_type` or `mutation_types`."""

PREPARED = {
    "problem_id": str,
    "statement": str,
    "original": str,
    "corrupted": str,
    "families": list,
    "tests": str,
    "test_kind": str,
    "entry_point": str,
}
"""Fields of a prepared file that are needed to load it; `prepare` writes more."""

BENCH_ENTRY_POINT = "task_func"
"""Entry point of every BigCodeBench task."""


def read_problems(path: Path | str) -> list[Problem]:
    """The problems of a file, in file order.

    Raises:
        OnpolError: not readable, a field missing, empty or of another type, source that does not
            parse, or an id given twice.
    """
    records = read_records(path)
    problems = [_problem(f"{path}, record {number}", record) for number, record in enumerate(records, 1)]
    id_field = "task_id" if "canonical_solution" in records[0] else "problem_id"
    check_unique(path, [problem.problem_id for problem in problems], id_field)
    return _with_originals(Path(path), problems)


def usable_file(path: Path) -> Path:
    """Where `verify` writes its result for a data file."""
    return path.with_name(path.name + ".usable.json")


def _with_originals(path: Path, problems: list[Problem]) -> list[Problem]:
    """The problems with `meta["original_passes"]` where that is known of this environment."""
    known = remembered(path)
    return [
        replace(problem, meta={**problem.meta, "original_passes": known[problem.problem_id]})
        if problem.problem_id in known
        else problem
        for problem in problems
    ]


def _problem(where: str, record: Record) -> Problem:
    published = "canonical_solution" in record or "corrupted_solution" in record
    problem = _published(where, record) if published else _prepared(where, record)
    for name, source in (("original", problem.original), ("corrupted", problem.corrupted)):
        try:
            ast.parse(source or "")
        except (SyntaxError, ValueError) as error:
            raise OnpolError(f"{where}: the {name} program does not parse ({error}). Remove the record.") from error
    return problem


def _published(where: str, record: Record) -> Problem:
    require_fields(where, record, PUBLISHED)
    families = record.get("mutation_types") or [record.get("mutation_type")]
    if isinstance(families, str):
        families = [families]
    if not all(isinstance(name, str) and name for name in families):
        raise OnpolError(f"{where}: neither 'mutation_type' nor 'mutation_types' names a corruption.")
    return Problem(
        problem_id=record["task_id"],
        statement=record["prompt"],
        tests=EditTests("unittest", record["test_code"], BENCH_ENTRY_POINT),
        original=record["canonical_solution"],
        corrupted=record["corrupted_solution"],
        entry_point=BENCH_ENTRY_POINT,
        families=tuple(name.removeprefix("mutate_") for name in families),
        meta={"source_id": record["task_id"]},
    )


def _prepared(where: str, record: Record) -> Problem:
    require_fields(where, record, PREPARED)
    if record["test_kind"] not in KINDS:
        raise OnpolError(f"{where}: field 'test_kind' is {record['test_kind']!r}; allowed: {', '.join(KINDS)}.")
    return Problem(
        problem_id=record["problem_id"],
        statement=record["statement"],
        tests=tests_of(record, record["original"]),
        original=record["original"],
        corrupted=record["corrupted"],
        entry_point=record["entry_point"],
        families=tuple(record["families"]),
        meta={"source_id": record.get("source_id") or record["problem_id"]},
    )


def tests_of(record: Record, original: str) -> EditTests:
    """The tests of a record with the fields of a prepared file."""
    try:
        parameters = parameters_of(original, record["entry_point"])
    except (SyntaxError, ValueError):
        parameters = ()
    optional: dict[str, Any] = {key: record[key] for key in ("preamble", "class_name") if record.get(key)}
    return EditTests(record["test_kind"], record["tests"], record["entry_point"], parameters=parameters, **optional)
