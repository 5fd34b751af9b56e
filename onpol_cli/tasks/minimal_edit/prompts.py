"""What a model is shown: the two prompt conditions, worked examples, and how a user replaces them.

Owns the texts (this project's own wording; the published ones can be put in through
`task.templates`) and their placeholders. `{statement}` and `{corrupted}` are replaced by the
problem's; other braces stay as they are, so that code in a template is safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import read_records, require_fields
from onpol_cli.core.types import Message
from onpol_cli.tasks.minimal_edit.shots import SHOTS, Shot

GENERIC = """\
This Python code has a bug, so that its tests fail. It is meant to do the following:

{statement}

```python
{corrupted}
```

Repair it. Answer with the whole corrected code in one ```python block."""

EXPLICIT = """\
This Python code has a bug, so that its tests fail. It is meant to do the following:

{statement}

```python
{corrupted}
```

Repair it with the smallest change that makes it right: leave every line that is not part of the bug exactly as it \
is, rename and restructure nothing, and keep signature, docstring and style. Answer with the whole corrected code in \
one ```python block."""

SYSTEM = "You repair Python code."

NAMES = ("generic", "explicit", "system", "shots")
"""Names allowed in `task.templates`. `shots` is a data file of worked examples."""


@dataclass(frozen=True)
class EditPrompts:
    """How problems are put to a model.

    Attributes:
        template: text of the user's turn, with placeholders.
        system: text of the system turn, "" for none.
        shots: worked examples, shown as earlier turns of the chat.
    """

    template: str = GENERIC
    system: str = SYSTEM
    shots: tuple[Shot, ...] = ()

    def messages(self, statement: str, corrupted: str) -> list[Message]:
        """The chat that asks for the repair of `corrupted`."""
        chat = [{"role": "system", "content": self.system}] if self.system else []
        for shot in self.shots:
            chat.append({"role": "user", "content": self._fill(shot.statement, shot.corrupted)})
            chat.append({"role": "assistant", "content": fenced(shot.original)})
        return [*chat, {"role": "user", "content": self._fill(statement, corrupted)}]

    def _fill(self, statement: str, corrupted: str) -> str:
        before, mark, after = self.template.partition("{corrupted}")
        parts = [part.replace("{statement}", statement.strip()) for part in (before, after)]
        return parts[0] + (corrupted.strip("\n") if mark else "") + parts[1]


def fenced(source: str) -> str:
    """The source in a Markdown block, as answers are expected."""
    return f"```python\n{source.strip(chr(10))}\n```"


def edit_prompts(condition: str, shots: int, templates: Mapping[str, str]) -> EditPrompts:
    """The prompts of a condition.

    Args:
        condition: "generic" or "explicit".
        shots: number of worked examples.
        templates: replacement texts by name (see `NAMES`).

    Raises:
        OnpolError: an unknown condition or name, a template without `{corrupted}`, or more
            examples asked for than there are.
    """
    unknown = sorted(set(templates) - set(NAMES))
    if unknown:
        raise OnpolError(f"task.templates: unknown name {unknown[0]!r}. Allowed: {', '.join(NAMES)}.")
    texts = {"generic": GENERIC, "explicit": EXPLICIT, "system": SYSTEM, **templates}
    if condition not in ("generic", "explicit"):
        raise OnpolError(f"Prompt condition {condition!r} is unknown. Allowed: generic, explicit.")
    if "{corrupted}" not in texts[condition]:
        raise OnpolError(f"task.templates.{condition} lacks the placeholder {{corrupted}}. Add it (and {{statement}}).")
    examples = _shots_file(Path(templates["shots"])) if "shots" in templates else SHOTS
    if not 0 <= shots <= len(examples):
        raise OnpolError(
            f"{shots} worked examples were asked for; 0 to {len(examples)} are possible. Lower the number of shots, "
            "or name a file with more in task.templates.shots."
        )
    return EditPrompts(texts[condition], texts["system"], tuple(examples[:shots]))


def _shots_file(path: Path) -> Sequence[Shot]:
    fields = {"statement": str, "corrupted": str, "original": str}
    shots: list[Shot] = []
    for number, record in enumerate(read_records(path), 1):
        require_fields(f"{path}, record {number}", record, fields)
        shots.append(Shot(record["statement"], record["corrupted"], record["original"]))
    return shots
