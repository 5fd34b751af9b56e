"""Words of the command line that change settings: checked before Hydra sees them, explained after it refused.

Owns every message about a `key=value` word. Hydra's own texts name neither the word nor a remedy, and it
silently accepts `+unknown=1`; hence the check in front.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.settings import groups, inside_mapping, keys, nearest

KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
SWEEPS = ("choice(", "range(", "interval(", "glob(", "shuffle(", "sort(", "tag(")
EXAMPLE = "Write key=value, for example seed=1 or method=rl."


def check_overrides(words: Sequence[str], *, sweep: bool = False) -> None:
    """Refuse words that cannot be meant.

    Args:
        words: `key=value` words.
        sweep: lists of values (`seed=1,2`) are allowed.

    Raises:
        OnpolError: no `=`, an unknown setting or choice, a list outside a sweep; with the nearest spelling.
    """
    known, choices = keys(), groups()
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        name = name.lstrip("+")
        if name.startswith("~"):
            raise OnpolError(f"{word!r} would delete a setting, which onpol has no use for. Give it a value instead.")
        if not equals or not name:
            raise OnpolError(_not_an_override(words, place))
        if name.split("/")[0].split(".")[0] == "hydra":
            continue
        if name not in known and name not in choices and not inside_mapping(name):
            raise OnpolError(_unknown(name, value, [*known, *choices]))
        if len(values := split_values(value)) > 1 and not sweep:
            raise OnpolError(
                f'{word!r} lists several values. To run each: onpol sweep "train tutor" {word} - '
                f"one list value is written {name}=[{value}]."
            )
        if name in choices:
            for choice in values if not value.startswith(SWEEPS) else []:
                _check_choice(name, choice.strip("'\""), choices[name])


def _not_an_override(words: Sequence[str], place: int) -> str:
    word, after = words[place], words[place + 1] if place + 1 < len(words) else None
    if after == "=" or word == "=" or word.startswith("="):
        return f"{' '.join(words[max(0, place - (word[0] == '=')) :][:3])!r}: no spaces around '='. {EXAMPLE}"
    if after is not None and "=" not in after:
        return f"Override {word!r} has no '='. Did you mean {word}={after}?"
    return f"Override {word!r} has no '='. {EXAMPLE}"


def _unknown(name: str, value: str, known: Sequence[str]) -> str:
    sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
    if name in sections:
        inner = [key for key in known if key.startswith(f"{name}.")]
        return f"{name!r} is a group of settings, not a value. Set one of: {', '.join(inner[:12])}."
    close = nearest(name, known)
    hint = f"Did you mean: {', '.join(close)}?" if close else "'onpol train tutor --dry-run' prints all settings."
    return f"Unknown setting {name!r}. {hint}"


def _check_choice(group: str, choice: str, choices: Sequence[str]) -> None:
    if choice in choices or f"{group}/{choice}" in groups():
        return
    close = difflib.get_close_matches(choice.lower().replace("_", "-"), choices, n=1)
    close = close or difflib.get_close_matches(choice.lower(), choices, n=1)
    hint = f" Did you mean {group}={close[0]}?" if close else ""
    raise OnpolError(f"No {group} named {choice!r}.{hint} Choices: {', '.join(choices)}.")


def split_values(value: str) -> list[str]:
    """The values of a sweep's list: `value` cut at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def for_hydra(words: Sequence[str]) -> list[str]:
    """`words` with `++` before entries of free mappings, which Hydra would else refuse to add."""
    return [f"++{word.lstrip('+')}" if inside_mapping(word.lstrip("+").split("=", 1)[0]) else word for word in words]


def check_grammar(words: Sequence[str]) -> None:
    """Refuse words that Hydra's grammar cannot read, naming the word (its own message does not)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for word in words:
        try:
            parser.parse_override(word)
        except HydraException as error:
            raise OnpolError(
                f"Override {word!r} cannot be read. Quote special characters twice, once for the shell: "
                "'model.path=\"a=b\"'; close every bracket: 'eval.benches=[humaneval,mbpp]'."
            ) from error


def explain(error: BaseException) -> str:
    """One line for what Hydra or OmegaConf refused."""
    text = _chain(error)
    for pattern, say in _RULES:
        found = re.search(pattern, text, re.DOTALL)
        if found:
            return say(found, text)
    return first_line(text)


def _key(text: str) -> str:
    found = re.search(r"full_key: (\S+)", text)
    return found.group(1) if found else "a setting"


def _type(found: re.Match[str], text: str) -> str:
    value, kind = found.groups()
    wanted = KINDS.get(kind, kind)
    return f"{_key(text)}={value} is not {wanted}." if value else f"{_key(text)}= has no value; it wants {wanted}."


def _enum(found: re.Match[str], text: str) -> str:
    value, allowed = found.group(1), found.group(2).split(", ")
    close = difflib.get_close_matches(value, allowed, n=1)
    hint = f" Did you mean {_key(text)}={close[0]}?" if close else ""
    return f"{_key(text)}={value} is none of: {', '.join(allowed)}.{hint}"


def _list(found: re.Match[str], text: str) -> str:
    return f"{_key(text)} takes a list in brackets: {_key(text)}=[VALUE,...]."


def _mapping(found: re.Match[str], text: str) -> str:
    return f"{_key(text)} takes named entries: {_key(text)}.NAME=VALUE."


def _null(found: re.Match[str], text: str) -> str:
    return f"{found.group(1)} cannot be null; leave it out for its default."


def _missing(found: re.Match[str], text: str) -> str:
    wanted = (found.group(1) or found.group(2)).removesuffix(".yaml")
    group, _, choice = wanted.rpartition("/")
    if group.startswith("hydra/"):
        extra = {"submitit_local": "slurm", "submitit_slurm": "slurm"}.get(choice, choice)
        return (
            f"No {group} named {choice!r} here. Launchers: basic, joblib, submitit_local, submitit_slurm, ray; "
            f"sweepers: basic, optuna. Each but basic is an extra: pip install 'onpol[{extra}]'."
        )
    choices = groups().get(group, [])
    return f"No {group or 'config'} named {choice!r}. Choices: {', '.join(choices) or 'none'}."


_RULES = (
    (r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", _type),
    (r"Invalid value '(.*?)', expected one of \[(.*?)\]", _enum),
    (r"Invalid value assigned: \w+ is not a ListConfig", _list),
    (r"Cannot assign \w+ to Dict", _mapping),
    (r"field '(\S+)' is not Optional", _null),
    (r"Could not find '([^']+)'|In '[^']+': Could not load '([^']+)'", _missing),
)


def _chain(error: BaseException) -> str:
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        parts.append(str(current))
        current = current.__cause__ or current.__context__
    return "\n".join(parts) + "\n"


def first_line(text: str) -> str:
    """The first telling line of an OmegaConf or Hydra text, with the setting's name in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    useful = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "See https", "reference_type="))
    ]
    detail = next(
        (line for line in useful if "rror merging" not in line), useful[0] if useful else "unreadable override"
    )
    return f"{key}: {detail}" if key and key not in detail else detail
