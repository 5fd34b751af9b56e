"""Problems of LiveCodeBench that its authors list as faulty.

Owns the list only. They stay in the score, as in the published figures; records and summaries carry
the flag. Source: ERRATA.md of LiveCodeBench/LiveCodeBench, commit 28fef95 (2025-07-16). LeetCode
problems are listed there by slug, but in the data by number (`question_id`): the slug is formed from
the title.
"""

from __future__ import annotations

import re
from typing import Final

MANY_ANSWERS: Final = "several right answers"
INTERACTIVE: Final = "interactive"
WRONG_TESTS: Final = "wrong tests"

ERRATA: Final[dict[str, str]] = {
    **dict.fromkeys(
        [
            "abc311_c",
            "abc326_d",
            "abc327_b",
            "abc333_e",
            "abc343_a",
            "abc343_e",
            "abc362_c",
            "arc185_c",
            "find-words-containing-character",
            "find-the-peaks",
            "generate-binary-strings-without-adjacent-zeros",
        ],
        MANY_ANSWERS,
    ),
    **dict.fromkeys(("abc337_e", "abc355_e"), INTERACTIVE),
    **dict.fromkeys(
        ("abc350_c", "arc189_a", "apply-operations-to-make-string-empty", "most-frequent-ids"), WRONG_TESTS
    ),
}


def erratum(question_id: str, title: str) -> str | None:
    """What is wrong with the problem, None if it is not listed."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return ERRATA.get(question_id) or ERRATA.get(slug)
