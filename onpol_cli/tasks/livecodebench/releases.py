"""Which problems a release name stands for, where their files are, and the filters by date and kind.

Owns names, files and filters. Reading files is `data`.

`vN` is the N-th file alone (v6: the 175 problems of test6.jsonl), `vM_vN` files M to N, `release_vN`
everything up to it (release_v6: all 1,055), `release_latest` the newest of those.
Source: dataset card of livecodebench/code_generation_lite. Its loading script no longer works with
current `datasets`; the files themselves are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Problem

HUB_ID: Final = "livecodebench/code_generation_lite"
LAST: Final = 6
SIZES: Final = {1: 400, 2: 111, 3: 101, 4: 101, 5: 167, 6: 175}
"""Problems by file."""
V6_BORDER: Final = "2025-01-04"
"""First contest day of test6.jsonl. LeetCode's contest of that evening still belongs to test5.jsonl."""
_SUFFIXES: Final = ("", ".gz")


@dataclass(frozen=True)
class Filters:
    """What to keep of the problems. Empty strings keep everything.

    Attributes:
        release: a release name.
        start_date: first contest day, YYYY-MM-DD, inclusive.
        end_date: last contest day, YYYY-MM-DD; inclusive as the official evaluator has it: up to
            that day's 00:00.
        difficulty: easy, medium or hard; several with commas.
        platform: leetcode, atcoder or codeforces; several with commas.
    """

    release: str = ""
    start_date: str = ""
    end_date: str = ""
    difficulty: str = ""
    platform: str = ""

    def __post_init__(self) -> None:
        if self.release:
            files_of(self.release)
        for name in ("start_date", "end_date"):
            _day(name, getattr(self, name))
        _choice("difficulty", self.difficulty, ("easy", "medium", "hard"))
        _choice("platform", self.platform, ("leetcode", "atcoder", "codeforces"))

    def keep(self, problem: Problem) -> bool:
        """Whether `problem` passes the filters by date, difficulty and platform."""
        date = datetime.fromisoformat(problem.meta["contest_date"]).replace(tzinfo=None)
        return (
            (not self.start_date or datetime.fromisoformat(self.start_date) <= date)
            and (not self.end_date or date <= datetime.fromisoformat(self.end_date))
            and (not self.difficulty or problem.meta["difficulty"] in self.difficulty.split(","))
            and (not self.platform or problem.meta["platform"] in self.platform.split(","))
        )

    def apply(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems that pass.

        Raises:
            OnpolError: none does.
        """
        kept = [problem for problem in problems if self.keep(problem)]
        if not kept:
            given = ", ".join(f"--{k.replace('_', '-')} {v}" for k, v in vars(self).items() if v)
            raise OnpolError(f"No LiveCodeBench problem of {len(problems)} passes {given}. Widen the filter.")
        return kept


def _day(name: str, text: str) -> None:
    if not text:
        return
    try:
        datetime.strptime(text, "%Y-%m-%d")
    except ValueError as error:
        raise OnpolError(f"--{name.replace('_', '-')} must be a day like 2025-01-31, got {text!r}.") from error


def _choice(name: str, text: str, allowed: Sequence[str]) -> None:
    wrong = [part for part in text.split(",") if part and part not in allowed]
    if wrong:
        raise OnpolError(f"--{name} {wrong[0]!r} is not one of {', '.join(allowed)}.")


def files_of(release: str) -> list[int]:
    """Numbers of the files that `release` consists of.

    Raises:
        OnpolError: no such release.
    """
    if release == "release_latest":
        return list(range(1, LAST + 1))
    match = re.fullmatch(r"release_v(\d)|v(\d)(?:_v(\d))?", release)
    if match:
        whole, first, last = match.groups()
        low, high = (1, int(whole)) if whole else (int(first), int(last or first))
        if 1 <= low <= high <= LAST:
            return list(range(low, high + 1))
    raise OnpolError(
        f"Unknown LiveCodeBench release {release!r}. Allowed: v1 to v{LAST} (one file each), ranges such as v4_v6, "
        f"release_v1 to release_v{LAST} (everything up to it), release_latest."
    )


def file_name(number: int) -> str:
    """Official name of the `number`-th file."""
    return "test.jsonl" if number == 1 else f"test{number}.jsonl"


def find_files(folder: Path, release: str) -> list[Path]:
    """The files of `release` in `folder` (plain or .gz).

    Raises:
        OnpolError: one is missing.
    """
    paths = []
    for number in files_of(release):
        found = next(
            (folder / (file_name(number) + s) for s in _SUFFIXES if (folder / (file_name(number) + s)).is_file()), None
        )
        if found is None:
            raise OnpolError(
                f"{folder} has no {file_name(number)}, which release {release} needs. "
                f"Get it: hf download {HUB_ID} {file_name(number)} --repo-type dataset --local-dir {folder}"
            )
        paths.append(found)
    return paths


def part_of(path: Path, release: str) -> Callable[[Problem], bool]:
    """Which problems of the single file `path` belong to `release`.

    A file with an official name is whole or not at all. Of other files only the border between v5
    and v6 can be told from the records, so only releases on its two sides are answered.

    Raises:
        OnpolError: the file cannot say.
    """
    numbers = files_of(release)
    official = re.fullmatch(r"test(\d?)\.jsonl(\.gz)?", path.name)
    if official:
        number = int(official[1] or 1)
        if numbers != [number]:
            raise OnpolError(
                f"{path.name} is file {number} of LiveCodeBench, release {release} is made of {len(numbers)} "
                f"({', '.join(map(file_name, numbers))}). Give the folder that holds them, or leave --release out."
            )
        return lambda problem: True
    if numbers == list(range(1, LAST + 1)):
        return lambda problem: True
    if numbers == [LAST]:
        return _in_v6
    if numbers == list(range(1, LAST)):
        return lambda problem: not _in_v6(problem)
    raise OnpolError(
        f"{path} does not say which of its problems belong to {release}. Leave --release out (the file is taken "
        "whole), use --start-date and --end-date, or give a folder with the official test*.jsonl."
    )


def _in_v6(problem: Problem) -> bool:
    day = problem.meta["contest_date"][:10]
    return bool(day >= V6_BORDER if problem.meta["platform"] != "leetcode" else day > V6_BORDER)
