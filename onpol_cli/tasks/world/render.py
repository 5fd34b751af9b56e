"""Writing a specification down as Python in a given style.

Everything passes through `ast.unparse`, so that layout never tells an original from a mutant. Owns
the frame (signature, early return, final step, piecewise functions); loops and comprehensions are
in `gather`.
"""

from __future__ import annotations

import ast

from onpol_cli.tasks.world.gather import gather_comprehension, gather_loop
from onpol_cli.tasks.world.spec import Guard, Piecewise, Spec, Walk
from onpol_cli.tasks.world.style import Style, choose_names

ENTRY_POINT = "f"
LOOP_ONLY = ("product", "counts", "tally")


def normalised(source: str) -> str:
    """`source` in the layout of `ast.unparse`."""
    return ast.unparse(ast.parse(source))


def signature(spec: Spec) -> str:
    """The `def` line."""
    return f"def {ENTRY_POINT}({', '.join(spec.params)}):"


def render(spec: Spec, style: Style) -> str:
    """The function that `spec` describes, written in `style`."""
    names = choose_names(style)
    lines = _piecewise(spec, style, names) if isinstance(spec, Piecewise) else _walk(spec, style, names)
    return normalised("\n".join([signature(spec), *("    " + line for line in lines)]))


def _walk(spec: Walk, style: Style, names: dict[str, str]) -> list[str]:
    lines = _guard(spec.guard, style, spec.result == "list") if spec.guard else []
    looped = spec.stop is not None or spec.gather.row.kind in LOOP_ONLY
    if style.comprehension and not looped:
        body, result = gather_comprehension(spec, style, names)
    else:
        body, result = gather_loop(spec, style, names)
    return lines + body + _finish(spec, style, names, result)


def _finish(spec: Walk, style: Style, names: dict[str, str], result: str) -> list[str]:
    if not result:
        return []
    if spec.post is None:
        return [f"return {result}"]
    if style.result and not result.isidentifier():
        return [f"{names['total']} = {result}", f"return {spec.post.code({**names, 'r': names['total']})}"]
    wrapped = result if result.isidentifier() else f"({result})"
    return [f"return {spec.post.code({**names, 'r': wrapped})}"]


def _guard(guard: Guard, style: Style, listed: bool) -> list[str]:
    param, constants = guard.param, dict(guard.term.constants)
    value = f"[{guard.value!r}]" if listed else repr(guard.value)
    kind = guard.term.row.kind
    if kind == "empty":
        test = f"not {param}" if style.guard < 0.6 else f"len({param}) == 0"
    else:
        left = param if kind == "small" else f"len({param})"
        test = f"{left} < {constants['m']}"
    return [f"if {test}:", f"    return {value}"]


def _piecewise(spec: Piecewise, style: Style, names: dict[str, str]) -> list[str]:
    cases = [(c.code(names, other=style.other), e.code(names, other=style.other)) for c, e in spec.branches]
    last = spec.otherwise.code(names, other=style.other)
    if style.branch < 0.15 and len(cases) == 1:
        return [f"return ({cases[0][1]}) if {cases[0][0]} else {last}"]
    chained, stored = style.branch < 0.6, 0.3 < style.branch < 0.75
    leave = f"{names['total']} = " if stored else "return "
    lines: list[str] = []
    if stored and not chained:
        lines.append(leave + last)
    for number, (test, value) in enumerate(cases):
        word = "elif" if number and (chained or stored) else "if"
        lines += [f"{word} {test}:", f"    {leave}{value}"]
    if chained:
        lines += ["else:", f"    {leave}{last}"]
    elif not stored:
        lines.append(leave + last)
    return [*lines, f"return {names['total']}"] if stored else lines
