"""Reading and writing data files: lists of records as .jsonl, .json or .parquet, each also .gz.

Owns the formats and what is said when a file is missing, cut off, of the wrong kind, lacks a field
or repeats an id. Every message names file, record (counted from 1), field and remedy. What the
fields mean is the caller's business. Records are plain data; nothing is ever unpickled.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import replace_file

Record = dict[str, Any]

FORMATS = (".jsonl", ".json", ".parquet")

_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def format_of(path: Path) -> str:
    """The format that a file name says: ".jsonl", ".json" or ".parquet".

    Raises:
        OnpolError: any other name.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in FORMATS:
        raise OnpolError(
            f"{path}: cannot tell the format from the name. Allowed: {', '.join(FORMATS)}, each also with .gz. "
            "Rename or convert the file."
        )
    return suffix


def read_records(path: Path | str) -> list[Record]:
    """All records of a file, in file order.

    Raises:
        OnpolError: not there, not readable, cut off, not of the format that its name says, a record
            that is no object, or no records at all.
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    records = readers[format_of(path)](path, _read_bytes(path))
    if not records:
        raise OnpolError(f"{path} holds no records. Get the file again.")
    return records


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError as error:
        raise OnpolError(
            f"{path} does not exist. Check the path; `onpol data list` says where data come from."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OnpolError(f"{path} is not a complete gzip file ({error}). Get the file again.") from error
    except OSError as error:
        raise OnpolError(f"{path} cannot be read: {error.strerror or error}. Check path and permissions.") from error


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OnpolError(f"{path} is not UTF-8 text (byte {error.start}). Get the file again or convert it.") from error


def _read_jsonl(path: Path, data: bytes) -> list[Record]:
    records: list[Record] = []
    lines = _decode(path, data).split("\n")  # not splitlines(): U+2028 may stand inside a JSON string
    last = max((number for number, line in enumerate(lines) if line.strip()), default=0)
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{path}, record {len(records) + 1} (line {number + 1})"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            cut = " The file may be cut off." if number == last else ""
            raise OnpolError(f"{where}: not valid JSON ({error}).{cut} One JSON object a line is needed.") from error
        records.append(_object(where, value))
    return records


def _read_json(path: Path, data: bytes) -> list[Record]:
    try:
        value = json.loads(_decode(path, data))
    except (ValueError, RecursionError) as error:
        if isinstance(error, OnpolError):
            raise
        raise OnpolError(
            f"{path} is not valid JSON ({error}). A JSON array is needed (a line an object: .jsonl)."
        ) from error
    if not isinstance(value, list):
        raise OnpolError(f"{path} holds {_kind(value)}. A JSON array of objects is needed.")
    return [_object(f"{path}, record {number}", item) for number, item in enumerate(value, 1)]


def _read_parquet(path: Path, data: bytes) -> list[Record]:
    import pyarrow as pa  # slow to import, and most files are JSON
    import pyarrow.parquet as pq

    try:
        rows: list[Record] = pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = _first_line(error)
        raise OnpolError(f"{path} is not a readable Parquet file ({reason}). Get the file again.") from error
    return rows


def _object(where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise OnpolError(f"{where}: {_kind(value)}, not an object with named fields. Is this the right file?")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), f"a {type(value).__name__}")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def require_fields(where: str, record: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]]) -> None:
    """Check that a record has these fields, with values of these types and no empty texts or lists.

    Args:
        where: "file, record N", for the message.
        record: what was read.
        fields: type (or types) by field name. An int is also a float, a bool is no number.

    Raises:
        OnpolError: naming the first field that is missing, null, empty or of another type.
    """
    for name, allowed in fields.items():
        types = allowed if isinstance(allowed, tuple) else (allowed,)
        wanted = " or ".join(_NAMES.get(kind, kind.__name__) for kind in types)
        value = record.get(name)
        if value is None:
            has = ", ".join(sorted(record)) or "no fields"
            raise OnpolError(f"{where}: field {name!r} is missing ({wanted} is needed; the record has {has}).")
        number = isinstance(value, int) and not isinstance(value, bool) and float in types
        if not number and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise OnpolError(f"{where}: field {name!r} is {_kind(value)}, where {wanted} is needed.")
        if isinstance(value, (str, list, dict)) and not value:
            raise OnpolError(f"{where}: field {name!r} is empty; {wanted} is needed. Remove or complete the record.")


def check_unique(path: Path | str, ids: Sequence[str], field: str = "task_id") -> None:
    """Check that no id occurs twice.

    Args:
        path: the file, for the message.
        ids: the id of every record, in file order.
        field: name of the id field, for the message.

    Raises:
        OnpolError: naming the id and both records.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(ids, 1):
        if name in first:
            raise OnpolError(
                f"{path}, record {number}: {field} {name!r} was already given in record {first[name]}. "
                "Ids must be unique: remove or rename one."
            )
        first[name] = number


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a .jsonl (or .jsonl.gz) file atomically. The same rows give the same bytes.

    Raises:
        RunFailed: the file cannot be written.
    """
    path = Path(path)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    packed = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
    replace_file(path, lambda file: file.write(packed))


def write_records(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write .jsonl, .json or .parquet by the name, the JSON formats also as .gz; otherwise as `write_jsonl`.

    Raises:
        OnpolError: another format.
        RunFailed: the file cannot be written.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == ".jsonl":
        write_jsonl(path, rows)
    elif kind == ".json":
        data = (json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n").encode()
        packed = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
        replace_file(path, lambda file: file.write(packed))
    elif path.suffix == ".gz":
        raise OnpolError(f"{path}: Parquet is compressed already. Write to a name that ends in .parquet.")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([dict(row) for row in rows])
        replace_file(path, lambda file: pq.write_table(table, file))


def well_formed(text: str) -> str:
    """`text` with a question mark for every lone surrogate: JSON can hold these, no UTF-8 file, source or stdin can."""
    return text.encode("utf-8", "replace").decode("utf-8")
