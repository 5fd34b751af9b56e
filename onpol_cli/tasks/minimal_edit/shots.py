"""Eight worked examples for few-shot prompts, written for this project: none is in any bench's data."""

from __future__ import annotations

from typing import NamedTuple


class Shot(NamedTuple):
    """One worked example: what the function should do, its broken and its right form."""

    statement: str
    corrupted: str
    original: str


def _shot(statement: str, original: str, right: str, wrong: str) -> Shot:
    assert original.count(right) == 1, f"{right!r} must occur once"
    return Shot(statement, original.replace(right, wrong), original)


SHOTS: tuple[Shot, ...] = (
    _shot(
        "Return how many readings lie strictly above the limit.",
        "def above(readings, limit):\n"
        "    count = 0\n"
        "    for value in readings:\n"
        "        if value > limit:\n"
        "            count += 1\n"
        "    return count",
        "value > limit",
        "value >= limit",
    ),
    _shot(
        "Return the lengths of all runs of equal neighbours in a text, in order.",
        "def run_lengths(text):\n"
        "    lengths = []\n"
        "    start = 0\n"
        "    for end in range(1, len(text) + 1):\n"
        "        if end == len(text) or text[end] != text[start]:\n"
        "            lengths.append(end - start)\n"
        "            start = end\n"
        "    return lengths",
        "end - start",
        "end + start",
    ),
    _shot(
        "Group words by their first letter, ignoring case; within a group keep the order of appearance.",
        "def by_initial(words):\n"
        "    groups = {}\n"
        "    for word in words:\n"
        "        if not word:\n"
        "            continue\n"
        "        groups.setdefault(word[0].lower(), []).append(word)\n"
        "    return groups",
        "if not word:",
        "if word:",
    ),
    _shot(
        "Return the k cheapest offers as (price, name) pairs, cheapest first.",
        "def cheapest(offers, k):\n"
        "    ranked = sorted(((price, name) for name, price in offers.items()))\n"
        "    return ranked[:k]",
        "ranked[:k]",
        "ranked[:k + 1]",
    ),
    _shot(
        "Return the moving sums over windows of the given width.",
        "def moving_sums(values, width):\n"
        "    sums = []\n"
        "    for start in range(len(values) - width + 1):\n"
        "        sums.append(sum(values[start:start + width]))\n"
        "    return sums",
        "range(len(values) - width + 1)",
        "range(len(values) - width)",
    ),
    _shot(
        "Return the day with the highest total, or None if there are no sales.",
        "def best_day(sales):\n"
        "    totals = {}\n"
        "    for day, amount in sales:\n"
        "        totals[day] = totals.get(day, 0) + amount\n"
        "    if not totals:\n"
        "        return None\n"
        "    return max(totals, key=totals.get)",
        "max(totals",
        "min(totals",
    ),
    _shot(
        "Return a copy of the grid in which every cell equal to old holds new.",
        "def repaint(grid, old, new):\n"
        "    result = [row.copy() for row in grid]\n"
        "    for row in result:\n"
        "        for column, cell in enumerate(row):\n"
        "            if cell == old:\n"
        "                row[column] = new\n"
        "    return result",
        "row.copy()",
        "row",
    ),
    _shot(
        "Return the text with its words in reverse order, joined by single spaces.",
        "def reverse_words(text):\n    words = text.split()\n    return ' '.join(words[::-1])",
        "' '.join",
        "''.join",
    ),
)
