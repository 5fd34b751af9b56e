"""Finding the program in what a model wrote.

Owns the rules: thinking blocks are dropped, the last complete fenced block wins, an unclosed fence
is tolerated, bare code is accepted. Shared by every task that asks for code. Pure text work:
never raises, whatever the text. Does not judge the code.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import NamedTuple

_THINK = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"^([ \t]{0,8})(`{3,}|~{3,})[ \t]*([^`]*?)[ \t]*$")
_ONE_LINE = re.compile(r"^[ \t]*```(?:python|py)?[ \t]+([^`\r\n]+?)[ \t]*```[ \t]*$", re.MULTILINE)
_LOOKS_LIKE_CODE = re.compile(r"^(?:def|class|import|from|async def|@\w)[ \t]*\S", re.MULTILINE)

_NOT_PYTHON = {"text", "txt", "output", "console", "bash", "sh", "shell", "json", "diff", "plaintext", "stdout"}


class _Block(NamedTuple):
    language: str
    body: str
    closed: bool


def extract_code(text: str) -> str | None:
    """The program in a completion, or None.

    In order: without thinking blocks (an unclosed one hides everything after it), the last
    complete fenced block that is not marked as something other than Python; else an unclosed
    one; else the whole text where it parses as statements or starts a definition.

    Args:
        text: any string.
    """
    answer = _without_thinking(text)
    blocks = [block for block in _blocks(answer) if block.body.strip()]
    python = [block for block in blocks if block.language not in _NOT_PYTHON]
    for candidates in (
        [block for block in python if block.closed],
        [block for block in python if not block.closed],
        [block for block in blocks if block.closed],
    ):
        if candidates:
            return candidates[-1].body
    inline = _ONE_LINE.findall(answer)
    if inline:
        return str(inline[-1])
    return _bare(answer)


def _without_thinking(text: str) -> str:
    """The text outside thinking blocks. A closing tag without an opening one ends a block that
    the chat template opened inside the prompt; an opening one without a closing one hides the rest.
    """
    kept: list[str] = []
    start, inside = 0, False
    for tag in _THINK.finditer(text):
        closing = bool(tag.group(1))
        if closing and not inside:
            kept.clear()
        elif not closing and not inside:
            kept.append(text[start : tag.start()])
        inside, start = not closing, tag.end()
    return "".join(kept) if inside else "".join([*kept, text[start:]])


def _blocks(text: str) -> list[_Block]:
    """Fenced blocks in order; the last may be unclosed."""
    found: list[_Block] = []
    fence, indent, language = "", "", ""
    body: list[str] = []
    # Not splitlines(): form feeds and their kin may stand inside a program.
    for line in text.replace("\r\n", "\n").split("\n"):
        match = _FENCE.match(line)
        lead, mark, info = match.groups() if match else ("", "", "")
        if not fence:
            if mark:
                fence, indent, language, body = mark, lead, _language(info), []
        elif mark and mark[0] == fence[0] and len(mark) >= len(fence) and not info:
            found.append(_Block(language, "\n".join(body), True))
            fence = ""
        elif mark == fence and info and not any(kept.strip() for kept in body):
            language, body = _language(info), []  # a second opening fence, nothing in between
        else:
            body.append(line.removeprefix(indent))
    if fence:
        rest = "\n".join(body).rstrip("\n")
        found.append(_Block(language, rest.rpartition(fence)[0] if fence in rest else rest, False))
    return found


def _language(info: str) -> str:
    return info.lower().split(" ")[0]


def _bare(text: str) -> str | None:
    """The text itself if it is code. A lone word parses too, and is not taken for a program."""
    stripped = text.strip("\r\n")
    if not stripped.strip():
        return None
    if _LOOKS_LIKE_CODE.match(stripped.lstrip()):
        return stripped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(stripped).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return stripped if any(not isinstance(statement, ast.Expr) for statement in body) else None
