"""What is taken for the program of a completion."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onpol_cli.tasks.extraction import extract_code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("~~~py\nx = 1\n~~~", "x = 1"),
        ("First:\n```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```\nDone.", "x = 2"),
        ("```python\nx = 1\n```\nand\n```python\nx = 2", "x = 1"),  # complete before unclosed
        ("Sure:\n```python\ndef f():\n    return 1\n", "def f():\n    return 1"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''"),
        ("<think>\n```python\nx = 0\n```\n</think>\n```python\nx = 1\n```", "x = 1"),
        ("hidden ```python\nx = 0\n```\n</think>\n```python\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\n<think>\n```python\nx = 2\n```", "x = 1"),
        ("<think>x = 1", None),
        ("<think>a<think>b</think>x = 1", "x = 1"),
        ("```python\nx = 1```", "x = 1"),
        ("```python\nx = 1\n```\nOutput:\n```text\n1\n```", "x = 1"),
        ("```json\n{}\n```", "{}"),
        ("```python\nx = 1\n```\n```\n```", "x = 1"),  # an empty block is no answer
        ("  ```python\n  if x:\n    y = 1\n  ```", "if x:\n  y = 1"),
        ("```python\nx = '\x0c\u2028'\n```", "x = '\x0c\u2028'"),
        ("```python x = 1 ```", "x = 1"),
        ("def f(a):\n    return a", "def f(a):\n    return a"),
        ("\nimport os\nx = (", "import os\nx = ("),
        ("x = 1\ny = x", "x = 1\ny = x"),
        ("Sorry", None),
        ("I cannot do that.", None),
        ("", None),
        ("   \n", None),
        ("```\n```", None),
        ("```python\n\n```", None),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1"),
    ],
)
def test_examples(text: str, code: str | None) -> None:
    assert extract_code(text) == code


FIXED = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MARKS = ["```", "~~~", "```python\n", "<think>", "</think>", "\n", "x = 1\n"]
NOISE = st.text(alphabet=st.one_of(st.characters(), st.sampled_from(list("`~<>/think\n\r \0\ud800'\"#:("))))


@FIXED
@given(st.lists(st.one_of(NOISE, st.sampled_from(MARKS)), max_size=8))
def test_any_text_gives_code_or_none(parts: list[str]) -> None:
    text = "".join(parts)
    code = extract_code(text)
    assert code is None or (code.strip() and len(code) <= len(text))


LINE = st.text(alphabet="abcxyz =+()[]:#'\"0123456789\t", min_size=1, max_size=30).filter(str.strip)
BEFORE = st.sampled_from(["", "Here it is.\n", "```python\nold = 1\n```\nNo:\n", "<think>hm</think>\n"])


@FIXED
@given(st.lists(LINE, min_size=1, max_size=6), BEFORE, st.booleans())
def test_a_fenced_program_comes_back_as_it_is(lines: list[str], before: str, talk: bool) -> None:
    code = "\n".join(lines)
    assert extract_code(f"{before}```python\n{code}\n```\n{'That is it.' if talk else ''}") == code
