"""The heart of a walk in Python: a loop with an accumulator, or a comprehension.

Both functions return the statements and the expression of the result ("" if the statements return).
"""

from __future__ import annotations

from collections.abc import Callable

from onpol_cli.tasks.world.sources import Form
from onpol_cli.tasks.world.spec import Walk
from onpol_cli.tasks.world.style import Style

Names = dict[str, str]
Lines = list[str]


def _form(spec: Walk, style: Style) -> Form:
    forms = spec.source.forms
    return forms[int(style.form * len(forms))]


def _fill(template: str, spec: Walk, names: Names) -> str:
    constants = {name: repr(value) for name, value in spec.constants}
    return template.format_map({"i": names["i"], "t": names["t"], **constants})


def _header(spec: Walk, form: Form, names: Names) -> tuple[str, Names]:
    """`target in iterable` of the loop, and the names with each element role replaced by its code."""
    target = ", ".join(names[role] for role in form.target)
    if form.target == ("i",) and spec.source.roles == ("w",) and not form.elements:
        target = names["w"]
    found = dict(names)
    for role, element in zip(spec.source.roles, form.elements, strict=False):
        found[role] = _fill(element, spec, names)
    return f"{target} in {_fill(form.iterable, spec, names)}", found


def _prelude(spec: Walk, form: Form, names: Names) -> Lines:
    return _fill(form.prelude, spec, names).splitlines() if form.prelude else []


def _used(spec: Walk) -> set[str]:
    """Roles that the terms speak of."""
    used: set[str] = set()
    for term in (spec.expression, spec.condition, spec.first, spec.stop):
        if term is not None:
            used.add(term.variable) if term.variable else used.update(spec.source.roles)
    return used


def _bindings(spec: Walk, style: Style, names: Names, found: Names) -> Lines:
    """Names given to elements of an index loop; `found` is updated."""
    lines = []
    for role in spec.source.roles:
        if style.bind and role in _used(spec) and found[role] not in (names[role], names["i"]):
            lines.append(f"{names[role]} = {found[role]}")
            found[role] = names[role]
    return lines


def gather_loop(spec: Walk, style: Style, names: Names) -> tuple[Lines, str]:
    """The walk as a `for` statement."""
    form = _form(spec, style)
    header, found = _header(spec, form, names)
    inner = _bindings(spec, style, names, found)
    if spec.first:
        inner.append(f"{names['y']} = {spec.first.code(found, other=style.other)}")
    if spec.stop:
        inner += [f"if {spec.stop.code(found, other=style.other)}:", "    break"]
    element = spec.expression.code(found, other=style.other) if spec.expression else ""
    start, update, result = _loop_parts(spec, style, names, element)
    kind = spec.gather.row.kind
    if spec.condition and kind == "all":
        inner += [f"if {spec.condition.negation(found)}:", *_indented(update)]
    elif spec.condition:
        test = spec.condition.code(found, other=style.other)
        if style.skip and kind not in ("count", "any", "first"):
            inner += [f"if {spec.condition.negation(found)}:", "    continue", *update]
        else:
            inner += [f"if {test}:", *_indented(update)]
    else:
        inner += update
    return [*_prelude(spec, form, names), *start, f"for {header}:", *_indented(inner)] + (
        [] if result else _after(spec)
    ), result


def _indented(lines: Lines) -> Lines:
    return ["    " + line for line in lines]


def _after(spec: Walk) -> Lines:
    """The return after a loop that returns from within."""
    fixed = {"any": "False", "all": "True"}
    kind = spec.gather.row.kind
    return [f"return {fixed[kind] if kind in fixed else repr(dict(spec.gather.constants)['k'])}"]


def _add(style: Style, target: str, operator: str, value: str) -> str:
    return f"{target} {operator}= {value}" if style.augmented else f"{target} = {target} {operator} ({value})"


def _number_parts(spec: Walk, style: Style, total: str, e: str, y: str) -> tuple[Lines, Lines, str] | None:
    """Start, update and result of loops whose accumulator is a number."""
    kind = spec.gather.row.kind
    k = repr(dict(spec.gather.constants).get("k"))
    name = [] if e.isidentifier() else [f"{y} = {e}"]
    value = e if e.isidentifier() else y
    if kind in ("sum", "product", "count"):
        start = "1" if kind == "product" else "0"
        operator = "*" if kind == "product" else "+"
        lead, shown = (name, value) if style.named and e else ([], e or "1")
        return [f"{total} = {start}"], [*lead, _add(style, total, operator, shown)], total
    if kind in ("best", "worst"):
        sign = ">" if kind == "best" else "<"
        test = f"if {total} is None or {value} {sign} {total}:"
        return [f"{total} = None"], [*name, test, f"    {total} = {value}"], total
    if kind in ("atleast", "atmost"):
        call, sign = ("max", ">") if kind == "atleast" else ("min", "<")
        if style.idiom:
            return [f"{total} = {k}"], [f"{total} = {call}({total}, {e})"], total
        return [f"{total} = {k}"], [*name, f"if {value} {sign} {total}:", f"    {total} = {value}"], total
    if kind == "last":
        return [f"{total} = {k}"], [f"{total} = {e}"], total
    if kind == "first":
        if style.idiom or spec.post:
            return [f"{total} = {k}"], [f"{total} = {e}", "break"], total
        return [], [f"return {e}"], ""
    if kind in ("any", "all"):
        before, after = ("False", "True") if kind == "any" else ("True", "False")
        if style.idiom:
            return [f"{total} = {before}"], [f"{total} = {after}", "break"], total
        return [], [f"return {after}"], ""
    return None


def _loop_parts(spec: Walk, style: Style, names: Names, e: str) -> tuple[Lines, Lines, str]:
    """Start, update and result of the loop; an empty result: the loop itself returns."""
    number = _number_parts(spec, style, names["total"], e, names["y"])
    if number is not None:
        return number
    out, y, kind = names["list"], names["y"], spec.gather.row.kind
    twice = (style.idiom and kind in ("counts", "tally", "distinct", "variety")) or kind == "longest"
    lead = [f"{y} = {e}"] if (style.named or twice) and not e.isidentifier() else []
    e = y if lead else e
    if kind in ("counts", "tally"):
        if style.idiom:
            update = [f"if {e} not in {out}:", f"    {out}[{e}] = 0", f"{out}[{e}] += 1"]
        else:
            update = [f"{out}[{e}] = {out}.get({e}, 0) + 1"]
        return [f"{out} = {{}}"], [*lead, *update], out
    if kind in ("distinct", "variety"):
        if style.idiom:
            return [f"{out} = []"], [*lead, f"if {e} not in {out}:", f"    {out}.append({e})"], f"len({out})"
        return [f"{out} = set()"], [*lead, f"{out}.add({e})"], f"len({out})"
    if kind == "longest":
        return [f"{out} = ''"], [*lead, f"if len({e}) > len({out}):", f"    {out} = {e}"], out
    if kind == "flat":
        update = [f"{out}.extend({e})" if style.augmented else f"{out} = {out} + {e}"]
    else:
        update = [f"{out}.append({e})" if style.augmented or style.idiom else f"{out} = {out} + [{e}]"]
    return [f"{out} = []"], [*lead, *update], _of_list(spec, style, out)


def _of_list(spec: Walk, style: Style, out: str) -> str:
    """The result as an expression of the list `out` of all elements."""
    constants = dict(spec.gather.constants)
    k = repr(constants.get("k"))
    results: dict[str, Callable[[], str]] = {
        "sum": lambda: f"sum({out})",
        "count": lambda: f"len({out})",
        "best": lambda: f"max({out}, default=None)" if style.idiom else f"max({out}) if {out} else None",
        "worst": lambda: f"min({out}, default=None)" if style.idiom else f"min({out}) if {out} else None",
        "atleast": lambda: f"max({out} + [{k}])" if style.idiom else f"max([{k}] + {out})",
        "atmost": lambda: f"min({out} + [{k}])" if style.idiom else f"min([{k}] + {out})",
        "first": lambda: f"{out}[0] if {out} else {k}",
        "last": lambda: f"{out}[-1] if {out} else {k}",
        "distinct": lambda: f"len(set({out}))",
        "variety": lambda: f"len(set({out}))",
        "mean": lambda: f"round(sum({out}) / len({out})) if {out} else {k}",
        "join": lambda: f"{k}.join({out})",
        "longest": lambda: f"max({out}, key=len, default='')",
        "bylen": lambda: f"sorted({out}, key=len)",
    }
    return results.get(spec.gather.row.kind, lambda: out)()


TWICE = ("best", "worst", "first", "last", "mean")


def gather_comprehension(spec: Walk, style: Style, names: Names) -> tuple[Lines, str]:
    """The walk as a comprehension, stored in a variable where the style or the meaning wants it."""
    form = _form(spec, style)
    header, found = _header(spec, form, names)
    lines, kind, out = _prelude(spec, form, names), spec.gather.row.kind, names["list"]
    if spec.first:
        lines.append(f"{names['t']} = [{spec.first.code(found, other=style.other)} for {header}]")
        header = f"{names['y']} in {names['t']}"
    test = spec.condition.code(found, other=style.other) if spec.condition else ""
    if kind in ("any", "all"):
        return lines, f"{kind}({test} for {header})"
    element = spec.expression.code(found, other=style.other) if spec.expression else "1"
    tail = f" for {header}" + (f" if {test}" if test else "")
    if kind == "count" and (style.stored or style.idiom):
        element = header.split(" in ")[0].split(", ")[0]
    if kind == "flat":
        tail, element = f"{tail} for {names['y']} in {element}", names["y"]
    plain = not test and kind != "flat" and header.startswith(f"{element} in ")
    whole = f"list({header.split(' in ', 1)[1]})" if plain else f"[{element}{tail}]"
    if _of_list(spec, style, out) == out:
        return (lines, whole) if not style.stored else ([*lines, f"{out} = {whole}"], out)
    twice = kind in TWICE and not (kind in ("best", "worst") and style.idiom)
    if kind == "first" and style.idiom:
        k = dict(spec.gather.constants)["k"]
        return lines, f"next(({element}{tail}), {k!r})"
    if twice or style.stored:
        return [*lines, f"{out} = {whole}"], _of_list(spec, style, out)
    if kind == "count" and not style.idiom:
        return lines, f"sum(1{tail})"
    generator = f"{header.split(' in ', 1)[1]}" if plain else f"({element}{tail})"
    needs_list = kind in ("count", "atleast", "atmost")
    return lines, _of_list(spec, style, whole if needs_list else generator)
