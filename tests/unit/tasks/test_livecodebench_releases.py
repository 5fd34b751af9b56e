"""Release names, files and filters."""

from pathlib import Path

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Problem
from onpol_cli.tasks.livecodebench.releases import SIZES, Filters, files_of, find_files, part_of


@pytest.mark.parametrize(
    ("release", "files"),
    [
        ("v6", [6]),
        ("v1", [1]),
        ("release_v6", [1, 2, 3, 4, 5, 6]),
        ("release_v1", [1]),
        ("release_v4", [1, 2, 3, 4]),
        ("release_latest", [1, 2, 3, 4, 5, 6]),
        ("v4_v6", [4, 5, 6]),
    ],
)
def test_release_names(release, files):
    assert files_of(release) == files


def test_sizes_are_the_published_ones():
    totals = [sum(SIZES[n] for n in files_of(f"release_v{last}")) for last in range(1, 7)]
    assert totals == [400, 511, 612, 713, 880, 1055]


@pytest.mark.parametrize("release", ["v7", "v0", "release_v9", "6", "v6_v4", "latest", ""])
def test_other_names_are_refused(release):
    with pytest.raises(OnpolError, match="Unknown LiveCodeBench release"):
        files_of(release)


def test_files_of_a_folder(tmp_path):
    for name in ("test.jsonl", "test2.jsonl.gz"):
        (tmp_path / name).touch()
    assert [p.name for p in find_files(tmp_path, "release_v2")] == ["test.jsonl", "test2.jsonl.gz"]
    with pytest.raises(OnpolError, match=r"has no test3.jsonl.*hf download"):
        find_files(tmp_path, "release_v3")


def problem(date, platform="atcoder", difficulty="easy"):
    return Problem("x", "", None, meta={"contest_date": date, "platform": platform, "difficulty": difficulty})


def test_dates_are_inclusive_as_officially():
    filters = Filters(start_date="2024-01-06", end_date="2024-01-07")
    days = ["2024-01-05T23:59:00", "2024-01-06T00:00:00", "2024-01-07T00:00:00", "2024-01-07T19:30:00"]
    assert [filters.keep(problem(day)) for day in days] == [False, True, True, False]


def test_difficulty_and_platform():
    filters = Filters(difficulty="easy,hard", platform="leetcode")
    assert filters.keep(problem("2024-01-06", "leetcode", "hard"))
    assert not filters.keep(problem("2024-01-06", "leetcode", "medium"))
    assert not filters.keep(problem("2024-01-06", "atcoder", "hard"))


@pytest.mark.parametrize(
    "wrong",
    [{"start_date": "2024-1"}, {"end_date": "x"}, {"difficulty": "hardest"}, {"platform": "spoj"}, {"release": "v9"}],
)
def test_wrong_filters_are_refused(wrong):
    with pytest.raises(OnpolError):
        Filters(**wrong)


def test_nothing_left_is_an_error():
    with pytest.raises(OnpolError, match="--start-date 2030-01-01"):
        Filters(start_date="2030-01-01").apply([problem("2024-01-06")])


def test_releases_within_one_file():
    newer, older = problem("2025-01-04T00:00:00"), problem("2025-01-04T18:30:00", "leetcode")
    here = Path("mine.jsonl")
    assert [part_of(here, "v6")(p) for p in (newer, older)] == [True, False]
    assert [part_of(here, "release_v5")(p) for p in (newer, older)] == [False, True]
    assert [part_of(here, "release_v6")(p) for p in (newer, older)] == [True, True]
    with pytest.raises(OnpolError, match="does not say which"):
        part_of(here, "v3")
    assert part_of(Path("test6.jsonl"), "v6")(older)
    with pytest.raises(OnpolError, match=r"test6.jsonl is file 6"):
        part_of(Path("test6.jsonl"), "release_v6")
