"""Each corruption family on a hand-written example, and what holds for all of them."""

from __future__ import annotations

import ast
import random

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.minimal_edit.families import (
    FAMILIES,
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    all_corruptions,
    corrupt,
    select_families,
    sites,
)

# family, one line of a function body, every line that it may become
TABLE: list[tuple[str, str, set[str]]] = [
    ("comparison_operators", "return a < b", {"return a <= b", "return a > b"}),
    ("comparison_operators", "return a == b != c", {"return a != b != c", "return a == b == c"}),
    ("comparison_operators", "return a in b", {"return a not in b"}),
    ("comparison_operators", "return a is None or a == None", set()),
    ("range_bounds", "return range(n)", {"return range(n + 1)", "return range(n - 1)"}),
    (
        "range_bounds",
        "return range(1, n + 1)",
        {"return range(2, n + 1)", "return range(0, n + 1)", "return range(1, n + 2)", "return range(1, n)"},
    ),
    ("range_bounds", "return range(len(a))", set()),
    ("sort_order", "return sorted(a)", {"return sorted(a, reverse=True)"}),
    ("sort_order", "a.sort(key=f, reverse=True)", {"a.sort(key=f, reverse=False)"}),
    ("sort_order", "return d.sort_values('x')", {"return d.sort_values('x', ascending=False)"}),
    ("arithmetic_operators", "return a - b", {"return a + b"}),
    ("arithmetic_operators", "a *= 2", {"a += 2", "a //= 2"}),
    ("arithmetic_operators", "return '%s' % a + 'x'", set()),
    ("list_indexing", "return a[0]", {"return a[1]"}),
    ("list_indexing", "return a[k - 1]", {"return a[k]", "return a[k - 2]"}),
    ("list_indexing", "return a[-1] + a['x'] + a[b]", set()),
    ("function_call_name", "return max(a)", {"return min(a)"}),
    ("function_call_name", "return np.mean(a)", {"return np.median(a)"}),
    ("function_call_name", "return sum(a)", {"return len(a)"}),
    ("remove_copy_calls", "return a.copy()", {"return a"}),
    ("remove_copy_calls", "return a[:]", {"return a"}),
    ("remove_copy_calls", "return copy.deepcopy(a)", {"return a"}),
    ("remove_copy_calls", "a[:] = b", set()),
    ("boolean_constants", "return f(True)", {"return f(False)"}),
    ("numeric_constants", "return a + 5", {"return a + 6", "return a + 4"}),
    ("numeric_constants", "return 0", {"return 1", "return -1"}),
    ("numeric_constants", "return 0.75", {"return 0.76", "return 0.74"}),
    ("numeric_constants", "return enumerate(a, 1), d.get(k, 0), a[-1], True", set()),
    ("slice_bounds", "return a[1:]", {"return a[2:]", "return a[0:]", "return a[1:-1]"}),
    ("slice_bounds", "return a[::-1]", set()),
    ("conditional_inversion", "return x if c else y", {"return y if c else x"}),
    ("range_step", "return range(n)", {"return range(0, n, 2)"}),
    ("range_step", "return range(n, 0, -1)", {"return range(n, 0, -2)"}),
    ("range_step", "return range(0, n, 3)", {"return range(0, n, 4)", "return range(0, n, 2)"}),
    ("min_max_swap", "return min(a) + a.max()", {"return max(a) + a.max()", "return min(a) + a.min()"}),
    ("abs_toggle", "return abs(a - b)", {"return a - b"}),
    ("abs_toggle", "return a - b", {"return abs(a - b)"}),
    ("abs_toggle", "return a - 1", set()),
    ("append_extend", "a.append(b)", {"a.extend(b)"}),
    ("append_extend", "a.extend(b)", {"a.append(b)"}),
    ("enumerate_start", "return enumerate(a)", {"return enumerate(a, 1)"}),
    ("enumerate_start", "return enumerate(a, 1)", {"return enumerate(a, 2)", "return enumerate(a, 0)"}),
    ("enumerate_start", "enumerate(a, start=k)", {"enumerate(a, start=k + 1)", "enumerate(a, start=k - 1)"}),
    ("dict_get_default", "return d.get(k, 0)", {"return d.get(k, 1)", "return d.get(k, -1)", "return d.get(k)"}),
    ("dict_get_default", "return d.get(k)", {"return d.get(k, 0)"}),
    ("dict_get_default", "return d.get(k, False)", {"return d.get(k, True)", "return d.get(k)"}),
    ("lower_upper", "return s.lower()", {"return s.upper()"}),
    ("lower_upper", "return lower(s)", set()),
    ("strip_variant", "return s.strip()", {"return s.lstrip()", "return s.rstrip()"}),
    ("join_separator", "return ''.join(a)", {"return ' '.join(a)", "return ','.join(a)"}),
    ("join_separator", "return '::'.join(a)", {"return ''.join(a)"}),
    ("sorted_key_len", "return sorted(a)", {"return sorted(a, key=len)"}),
    ("sorted_key_len", "a.sort(key=len)", {"a.sort()"}),
    ("sorted_key_len", "a.sort(key=f)", set()),
    ("set_list_cast", "return set(a)", {"return list(a)"}),
    ("set_list_cast", "return list(a)", {"return set(a)"}),
    ("set_list_cast", "return set()", set()),
    ("round_int", "return round(a)", {"return int(a)"}),
    ("round_int", "return int(a)", {"return round(a)"}),
    ("round_int", "return int(a, 2)", set()),
    ("comprehension_filter", "{x for x in a if x if y}", {"{x for x in a if x}", "{x for x in a if y}"}),
    ("find_index", "return s.find(t)", {"return s.index(t)"}),
    ("find_index", "return s.rindex(t)", {"return s.rfind(t)"}),
    ("any_all", "return any(a)", {"return all(a)"}),
    ("zip_order", "return zip(a, b, c)", {"return zip(b, a, c)", "return zip(a, c, b)"}),
    ("zip_order", "return zip(*a)", set()),
    ("range_len_endpoint", "return range(len(a))", {"return range(len(a) - 1)", "return range(len(a) + 1)"}),
    ("range_len_endpoint", "return range(len(a) - 1)", {"return range(len(a) - 2)", "return range(len(a))"}),
    ("range_len_endpoint", "return range(n)", set()),
    ("negative_index_shift", "return a[-1]", {"return a[-2]"}),
    ("negative_index_shift", "return a[-2]", {"return a[-1]", "return a[-3]"}),
    ("negative_index_shift", "return a[1] - 1", set()),
    ("items_keys_values", "return d.items()", {"return d.keys()", "return d.values()"}),
    ("none_comparison", "return a is None", {"return a is not None"}),
    ("none_comparison", "return a != None", {"return a == None"}),
    ("none_comparison", "return a is b", set()),
]

BLOCKS: list[tuple[str, str, set[str]]] = [
    (
        "accumulator_init",
        "total = 0\nfor x in a:\n    total += x",
        {"total = 1\nfor x in a:\n    total += x", "total = -1\nfor x in a:\n    total += x"},
    ),
    (
        "accumulator_init",
        "best, k = (float('inf'), 3)\nfor x in a:\n    best = min(best, x)",
        {"best, k = (float('-inf'), 3)\nfor x in a:\n    best = min(best, x)"},
    ),
    ("accumulator_init", "k = 0\nreturn k + a", set()),
    (
        "edge_case_guards",
        "if not a:\n    return 0\nreturn 1",
        {"if a:\n    return 0\nreturn 1", "return 1"},
    ),
    (
        "edge_case_guards",
        "if len(a) < 2:\n    raise ValueError",
        {
            "if len(a) >= 2:\n    raise ValueError",
            "if len(a) < 3:\n    raise ValueError",
            "if len(a) < 1:\n    raise ValueError",
            "pass",
        },
    ),
    ("edge_case_guards", "if a:\n    b = 1\nreturn b", set()),
    (
        "conditional_inversion",
        "if a > b:\n    c = 1\nelif d:\n    c = 2",
        {"if a <= b:\n    c = 1\nelif d:\n    c = 2", "if a > b:\n    c = 1\nelif not d:\n    c = 2"},
    ),
    ("conditional_inversion", "if a is None:\n    b = 1", set()),
    ("break_to_continue", "for x in a:\n    break", {"for x in a:\n    continue"}),
    (
        "list_indexing",
        "for i in range(n):\n    f(a[i])",
        {"for i in range(n):\n    f(a[i + 1])", "for i in range(n):\n    f(a[i - 1])"},
    ),
]


def _function(body: str) -> str:
    return "def f(a, b):\n" + "\n".join("    " + line for line in body.splitlines())


@pytest.mark.parametrize(("family", "before", "afters"), TABLE + BLOCKS)
def test_family_makes_exactly_these_mutants(family: str, before: str, afters: set[str]) -> None:
    made = {mutant.source for mutant in all_corruptions(_function(before), [family])}
    assert made == {ast.unparse(ast.parse(_function(after))) for after in afters}


def test_every_family_has_an_example_that_it_changes() -> None:
    assert {family for family, _, afters in TABLE + BLOCKS if afters} == set(FAMILIES)


def test_the_sets_have_the_published_sizes() -> None:
    assert (len(IN_DOMAIN), len(OUT_OF_DOMAIN), len(FAMILIES)) == (14, 20, 34)


PROTECTED = '''
import numpy as np

LIMIT = 3

@decorate(1, True, key=max(2, 3))
def outer(a: List[1] = [0], b=max(1, 2), *, c: "x" = 5 < 6) -> Tuple[int, 3]:
    """Return 1 if a < 2, max(3, 4)."""
    x: Dict[5, 6] = None
    @inner_decorator(7)
    def inner(d=8):
        """Sorted(9)."""
        return d
    g = lambda e=10: e
    return f"{a:>{12}}"

class Solution:
    size = 13
    @staticmethod
    def method(h=14): return h
'''


def test_signature_decorators_docstrings_and_annotations_are_never_touched() -> None:
    assert list(all_corruptions(PROTECTED, select_families("all"))) == []


def test_methods_and_nested_functions_are_corrupted() -> None:
    source = "class S:\n    def f(self, a):\n        def g(b):\n            return min(b)\n        return any(a)\n"
    made = [mutant.source for mutant in all_corruptions(source, ["min_max_swap", "any_all"])]
    assert len(made) == 2
    assert "return max(b)" in made[0]
    assert "return all(a)" in made[1]


SAMPLE = _function(
    "total = 0\nfor i in range(1, len(a)):\n    if a[i] > a[i - 1]:\n        total += abs(a[i] - b)\nreturn total"
)


def test_same_seed_same_mutant_and_every_site_is_reached() -> None:
    names = select_families("all")
    first = [corrupt(SAMPLE, names, random.Random(seed), 2) for seed in range(400)]
    again = [corrupt(SAMPLE, names, random.Random(seed), 2) for seed in range(400)]
    assert first == again
    single = {corrupt(SAMPLE, names, random.Random(seed)).source for seed in range(600)}  # type: ignore[union-attr]
    assert single == {mutant.source for mutant in all_corruptions(SAMPLE, names)}


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_several_edits_never_undo_one_another(count: int) -> None:
    normal = ast.unparse(ast.parse(SAMPLE))
    for seed in range(50):
        mutant = corrupt(SAMPLE, select_families("all"), random.Random(seed), count)
        assert mutant is not None
        assert ast.unparse(ast.parse(mutant.source)) != normal
        assert 1 <= len(mutant.families) == len(mutant.sites) <= count


def test_sites_are_listed_in_source_order_and_leave_the_tree_alone() -> None:
    tree = ast.parse(SAMPLE)
    found = sites(tree, "list_indexing")
    assert [site.line for site in found] == sorted(site.line for site in found)
    assert {site.describe()["after"] for site in found} == {"a[i + 1]", "i - 1", "i", "i - 2", "i + 1"} - {"a[i + 1]"}
    assert ast.unparse(tree) == ast.unparse(ast.parse(SAMPLE))


def test_nothing_to_corrupt_gives_none() -> None:
    assert corrupt("def f(a):\n    return a\n", ["any_all"], random.Random(0)) is None
    assert corrupt("def f(:\n", ["any_all"], random.Random(0)) is None
    assert corrupt("any(x)\n", ["any_all"], random.Random(0)) is None


def test_families_are_selected_by_set_name_or_list() -> None:
    assert select_families("in-domain") == tuple(IN_DOMAIN)
    assert select_families("all") == tuple(FAMILIES)
    assert select_families("any-all, mutate_range_bounds,any_all") == ("any_all", "range_bounds")


@pytest.mark.parametrize("spec", ["", "range_bound", "in-domain,,", "nonsense"])
def test_unknown_families_are_refused_with_the_nearest_names(spec: str) -> None:
    with pytest.raises(OnpolError, match="Nearest"):
        select_families(spec)
    if spec == "range_bound":
        with pytest.raises(OnpolError, match="range_bounds"):
            select_families(spec)
