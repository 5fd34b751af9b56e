"""Where correct programs come from: LeetCodeDataset, BigCodeBench, MBPP, a file, or the hub.

Owns the recognition of their record formats and the download. A `Source` is one correct program with
statement and tests; nothing is run here. Programs are normalised (`ast.unparse`), so that original
and mutant share their layout.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import FORMATS, Record, check_unique, read_records, require_fields
from onpol_cli.tasks.minimal_edit.testing import EditTests, parameters_of

LOGGER = logging.getLogger("onpol")

HUB = {
    "leetcode": ("newfacade/LeetCodeDataset", "train"),
    "bigcodebench": ("bigcode/bigcodebench", ""),
    "mbpp": ("google-research-datasets/mbpp", "sanitized"),
}
"""Hub data set of each named source, and a word that its file names must contain."""


@dataclass(frozen=True)
class Source:
    """One correct program.

    Attributes:
        source_id: the pool's own id.
        statement: what it must do.
        original: the program, normalised.
        tests: what it passes.
        details: the full problem text where `statement` is a part of it.
    """

    source_id: str
    statement: str
    original: str
    tests: EditTests
    details: str = ""


def read_sources(source: str, data: Path | None = None) -> list[Source]:
    """All programs of a pool, in file order. Programs that do not parse are left out with a warning.

    Args:
        source: leetcode, bigcodebench, mbpp, a path, or `hub:OWNER/NAME` (`hub:OWNER/NAME/FILE` for one file).
        data: file of a named source; downloaded from the hub where None.

    Raises:
        OnpolError: unknown source, download failed, or records of no known format.
    """
    paths = _paths(source, data)
    found: list[Source] = []
    for path in paths:
        records = read_records(path)
        read = _format(path, records[0])
        sources = [read(f"{path}, record {number}", record) for number, record in enumerate(records, 1)]
        found += [item for item in sources if item is not None]
        if len(found) < len(sources):
            LOGGER.warning("%s: %d programs do not parse and are left out", path, len(sources) - len(found))
    check_unique(paths[0], [item.source_id for item in found], "id")
    return found


def _paths(source: str, data: Path | None) -> list[Path]:
    if data is not None and (source in HUB or source.startswith("hub:")):
        return [data]
    if source in HUB:
        return _download(*HUB[source])
    if source.startswith("hub:"):
        name = source.removeprefix("hub:")
        parts = name.split("/")
        return _download("/".join(parts[:2]), "/".join(parts[2:]))
    if Path(source).suffix:
        return [Path(source)]
    raise OnpolError(f"Unknown source {source!r}. Allowed: {', '.join(HUB)}, a path, or hub:OWNER/NAME.")


def _download(name: str, word: str) -> list[Path]:
    """Data files of a hub data set whose names contain `word`, test splits left out."""
    import httpx
    from huggingface_hub import hf_hub_download, list_repo_files

    try:
        files = list_repo_files(name, repo_type="dataset")
        fits = [file for file in sorted(files) if word in file and file.removesuffix(".gz").endswith(FORMATS)]
        chosen = [file for file in fits if "test" not in file] or fits
        if name == HUB["bigcodebench"][0]:
            chosen = chosen[-1:]  # one file a version: the newest
        paths = [Path(hf_hub_download(name, file, repo_type="dataset")) for file in chosen]
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OnpolError(
            f"Cannot get {name} from the hub ({reason}). Check the name and the network, or download it elsewhere "
            "and give the file with --data FILE."
        ) from error
    if not paths:
        raise OnpolError(f"{name} has no data files ({', '.join(FORMATS)}) named like {word!r}. Give --data FILE.")
    return paths


Reader = Callable[[str, Record], Source | None]


def _format(path: Path, record: Record) -> Reader:
    """The reader for records that look like `record`."""
    for needed, reader in _READERS:
        if all(name in record for name in needed):
            return reader
    known = "; ".join(", ".join(needed) for needed, _ in _READERS)
    raise OnpolError(f"{path}, record 1 has the fields {', '.join(record)}. Known formats have: {known}.")


def _leetcode(where: str, record: Record) -> Source | None:
    fields = ("task_id", "completion", "entry_point", "test", "query")
    require_fields(where, record, dict.fromkeys(fields, str))
    details = str((record.get("meta") or {}).get("question_title") or record.get("problem_description") or "")
    statement = record["query"].partition("Please complete the following")[0]
    tests = ("assert", record["test"], record["entry_point"])
    return _source((record["task_id"], statement, details), record["completion"], tests, record.get("prompt") or "")


def _bigcodebench(where: str, record: Record) -> Source | None:
    fields = ("task_id", "complete_prompt", "canonical_solution", "instruct_prompt", "test", "entry_point")
    require_fields(where, record, dict.fromkeys(fields, str))
    program = record["complete_prompt"] + record["canonical_solution"]
    tests = ("unittest", record["test"], record["entry_point"])
    return _source((record["task_id"], record["instruct_prompt"], ""), program, tests)


def _mbpp(where: str, record: Record) -> Source | None:
    require_fields(where, record, {"code": str, "test_list": list, "task_id": (int, str)})
    script = "\n".join([*(record.get("test_imports") or []), *record["test_list"]])
    statement = record.get("prompt") or record.get("text") or ""
    tests = ("assert", script, _called_by(script, record["code"]))
    return _source((f"mbpp/{record['task_id']}", statement, ""), record["code"], tests)


def _generic(where: str, record: Record) -> Source | None:
    require_fields(where, record, dict.fromkeys(("problem_id", "statement", "original", "tests"), str))
    kind = record.get("test_kind") or ("unittest" if "unittest.TestCase" in record["tests"] else "assert")
    entry = record.get("entry_point") or _called_by(record["tests"], record["original"])
    texts = (record["problem_id"], record["statement"], "")
    return _source(texts, record["original"], (kind, record["tests"], entry), record.get("preamble") or "")


_READERS: Sequence[tuple[tuple[str, ...], Reader]] = (
    (("completion", "query", "test", "entry_point"), _leetcode),
    (("complete_prompt", "canonical_solution", "test"), _bigcodebench),
    (("code", "test_list"), _mbpp),
    (("problem_id", "statement", "original", "tests"), _generic),
)


def _source(
    texts: tuple[str, str, str], program: str, tests: tuple[str, str, str], preamble: str = ""
) -> Source | None:
    """Build a source from (id, statement, details), program, (kind, script, entry point)."""
    try:
        original = ast.unparse(ast.parse(program))
        parameters = parameters_of(original, tests[2])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    edit_tests = EditTests(*tests, preamble=preamble, parameters=parameters)
    return Source(texts[0], texts[1].strip(), original, edit_tests, texts[2])


def _called_by(script: str, program: str) -> str:
    """The function of `program` that the tests call first; its last function where none is called."""
    try:
        defined = [node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)]
        calls = [node.func for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError):
        return ""
    names = [func.id for func in calls if isinstance(func, ast.Name) and func.id in defined]
    return names[0] if names else (defined or [""])[-1]


def leetcode_slugs(path: Path) -> set[str]:
    """Slugs of the LeetCode problems in a LiveCodeBench file: overlap to be left out of training data."""
    slugs: set[str] = set()
    for number, record in enumerate(read_records(path), 1):
        require_fields(f"{path}, record {number}", record, {"platform": str, "question_title": str})
        if record["platform"] == "leetcode":
            slugs.add("-".join(record["question_title"].lower().split()))
    return slugs
