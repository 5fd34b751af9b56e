"""LiveCodeBench's records: from the official `test*.jsonl` (or any records file) to problems.

Owns the record's fields, their checks, and the lazily decoded tests. Does not choose files
(`releases`) and grades nothing (`task`). Every record is decoded once while loading, so that a damaged
or poisoned one is met before anything is graded; what stays in memory is the compressed form, or for
plain .jsonl only the place in the file (release_v6 has 4 GB).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import read_records
from onpol_cli.core.types import Problem
from onpol_cli.tasks.livecodebench.errata import erratum
from onpol_cli.tasks.livecodebench.plain_pickle import PoisonedData, inflate, read_plain_pickle, unbase64

FIELDS = [
    "question_id",
    "question_title",
    "question_content",
    "platform",
    "contest_id",
    "contest_date",
    "starter_code",
    "difficulty",
    "public_test_cases",
    "private_test_cases",
    "metadata",
]
_TEXT_FIELDS = ("question_content", "contest_date", "platform", "difficulty")
_KEEP_BYTES = 64 * 1024
"""Encoded tests up to this size stay in memory; larger ones of a plain .jsonl are read again."""

Case = tuple[str, str]
"""One test: (input, expected output), both as text."""


@dataclass(frozen=True)
class LcbTests:
    """A problem's tests, decoded on demand.

    Attributes:
        public: JSON text of the public tests, or the list itself.
        private: the encoded private tests: JSON text, base64 text, or a list; None if `place` is set.
        place: (file, byte offset of the record's line) of a plain .jsonl.
        function: name of the method to call, None for problems that read stdin.
        size: characters of the decoded tests.
    """

    public: Any
    private: Any
    place: tuple[Path, int] | None
    function: str | None
    size: int = 0

    def cases(self) -> list[Case]:
        """Public then private tests, in the official order.

        Raises:
            PoisonedData: the tests are damaged or not plain data.
        """
        private = self.private
        if self.place is not None:
            path, offset = self.place
            with path.open("rb") as file:
                file.seek(offset)
                private = json.loads(file.readline())["private_test_cases"]
        return [_case(test) for test in _tests(self.public) + _tests(private)]


def _tests(encoded: Any) -> list[Any]:
    """The list of tests behind any of the official encodings."""
    value = encoded
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = read_plain_pickle(inflate(unbase64(value)))
            value = json.loads(value) if isinstance(value, (str, bytes)) else value
    if not isinstance(value, list):
        raise PoisonedData(f"a {type(value).__name__} instead of a list of tests")
    return value


def _case(test: Any) -> Case:
    if not isinstance(test, dict) or not all(isinstance(test.get(key), str) for key in ("input", "output")):
        raise PoisonedData("a test without the texts input and output")
    return test["input"], test["output"]


def load(paths: Sequence[Path]) -> list[Problem]:
    """All problems of `paths`, in file order.

    Raises:
        OnpolError: a record lacks a field, has no tests, cannot be decoded safely, or repeats an id.
    """
    problems: dict[str, Problem] = {}
    for path in paths:
        for number, record, offset in _records(path):
            problem = _problem(path, number, record, offset)
            if problem.problem_id in problems:
                raise OnpolError(
                    f"{path}, record {number}: question_id {problem.problem_id!r} occurs twice. Remove one of the two."
                )
            problems[problem.problem_id] = problem
    return list(problems.values())


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any], int | None]]:
    """(1-based number, record, byte offset or None)."""
    if path.suffix != ".jsonl" or not path.is_file():
        for number, record in enumerate(read_records(path), 1):
            yield number, record, None
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parse(path, number, line), offset
            offset += len(line)


def _parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise OnpolError(
            f"{path}, record {number}: not JSON ({error}). The file is damaged or truncated: download it again."
        ) from error
    if not isinstance(record, dict):
        raise OnpolError(f"{path}, record {number}: a {type(record).__name__}, not an object. Give the official file.")
    return record


def _problem(path: Path, number: int, record: Mapping[str, Any], offset: int | None) -> Problem:
    where = f"{path}, record {number}"
    missing = [field for field in FIELDS if field not in record]
    if missing:
        raise OnpolError(
            f"{where}: no field {', '.join(missing)}. Give a test*.jsonl of livecodebench/code_generation_lite."
        )
    where += f" ({record['question_id']})"
    for field in _TEXT_FIELDS:
        if not isinstance(record[field], str):
            raise OnpolError(f"{where}: {field} must be text, got {type(record[field]).__name__}.")
    tests = _lazy_tests(path, where, record, offset)
    title = str(record["question_title"])
    meta = {
        "title": title,
        "platform": record["platform"],
        "difficulty": record["difficulty"],
        "contest_id": str(record["contest_id"]),
        "contest_date": _date(where, record["contest_date"]),
        "starter_code": record["starter_code"] or "",
        "erratum": erratum(str(record["question_id"]), title),
    }
    return Problem(
        problem_id=str(record["question_id"]),
        statement=record["question_content"],
        tests=tests,
        entry_point=tests.function,
        meta=meta,
    )


def _date(where: str, text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise OnpolError(f"{where}: contest_date {text!r} is not an ISO date.") from error
    return text


def _lazy_tests(path: Path, where: str, record: Mapping[str, Any], offset: int | None) -> LcbTests:
    private = record["private_test_cases"]
    far = offset is not None and isinstance(private, str) and len(private) > _KEEP_BYTES
    tests = LcbTests(
        public=record["public_test_cases"],
        private=None if far else private,
        place=(path, offset) if far and offset is not None else None,
        function=_function(where, record["metadata"]),
    )
    try:
        cases = (LcbTests(tests.public, private, None, tests.function)).cases()
    except (PoisonedData, ValueError, RecursionError) as error:
        raise OnpolError(
            f"{where}: private_test_cases or public_test_cases cannot be used: {error}. "
            "Nothing of it was run; download the file from a source that you trust."
        ) from error
    if not cases:
        raise OnpolError(f"{where}: no tests in public_test_cases and private_test_cases. Remove the record.")
    if tests.function is not None:
        _check_functional(where, cases)
    return replace(tests, size=sum(len(given) + len(expected) for given, expected in cases))


def _function(where: str, metadata: Any) -> str | None:
    try:
        value = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError as error:
        raise OnpolError(f"{where}: metadata is not JSON ({error}).") from error
    name = value.get("func_name") if isinstance(value, dict) else None
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise OnpolError(f"{where}: metadata.func_name {name!r} is not a function name.")
    return name


def _check_functional(where: str, cases: Sequence[Case]) -> None:
    """Arguments and results of functional tests are JSON; say so before anything is graded."""
    for number, (given, expected) in enumerate(cases, 1):
        try:
            arguments(given)
            json.loads(expected)
        except ValueError as error:
            raise OnpolError(f"{where}: test {number} of a functional problem is not JSON ({error}).") from error


def arguments(text: str) -> tuple[Any, ...]:
    """Positional arguments of a functional test: one JSON value a line.

    Raises:
        ValueError: a line is not JSON.
    """
    return tuple(json.loads(line) for line in text.split("\n"))
