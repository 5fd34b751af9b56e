"""Building a Minimal Code Edit data set: corrupt correct programs, keep what fails its tests.

Owns the pipeline from a pool of sources to a file: originals are run, tests strengthened, mutants
drawn and run, and the failing ones kept. Everything drawn depends on (seed, source) alone, so the
same options give the same bytes, whatever the number of workers, resumed or not. Time is counted in
steps (`budget`); a mutant that exceeds them is dropped, since its failure would rest on a limit.
Formats of pools are `sources`, variation of inputs is `strengthen`, bugs are `families`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import Record, format_of, write_records
from onpol_cli.core.seeding import derive_rng
from onpol_cli.sandbox.jobs import Job, ReferenceJob, ReferenceResults, Status, Verdict
from onpol_cli.tasks.minimal_edit.budget import instrument, spent, with_budget
from onpol_cli.tasks.minimal_edit.families import Corruption, corrupt, select_families
from onpol_cli.tasks.minimal_edit.sources import Source, leetcode_slugs, read_sources
from onpol_cli.tasks.minimal_edit.strengthen import (
    can_be_strengthened,
    example_inputs,
    is_exact,
    plain,
    vary,
    with_tests,
)
from onpol_cli.tasks.minimal_edit.testing import EditTests

LONGEST = 2000
"""Characters of a corrupted program, exclusive. Source: the published training set's filter."""
CPU_S = 20.0
WALL_S = 300.0
"""Last resorts, for work that `budget` cannot count (huge numbers, say). So long that a loaded machine
does not change the file."""
ADDED_TESTS = 12
CHUNK = 64
"""Sources between two writes of the partial file."""

Progress = Callable[[int, int], None]


class Judge(Protocol):
    """What is needed of the sandbox."""

    def run(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Verdicts in the order of `jobs`."""
        ...

    def results(self, jobs: Sequence[ReferenceJob]) -> list[ReferenceResults]:
        """Results of reference solutions, in the order of `jobs`."""
        ...


@dataclass(frozen=True)
class PrepareOptions:
    """What to build.

    Attributes:
        source: pool (see `sources.read_sources`).
        families: corruption families (see `families.select_families`).
        max_corruptions: most edits in one mutant; as many as apply up to this number are made. The
            default is the published training set's.
        per_problem: most mutants kept of one source.
        seed: of everything drawn.
        limit: use only the first so many sources; 0 uses all.
        data: file of a named source.
        exclude: LiveCodeBench file; LeetCode problems in it are left out.
        strengthen: add tests answered by the reference.
    """

    source: str
    families: str = "out-of-domain"
    max_corruptions: int = 20
    per_problem: int = 1
    seed: int = 0
    limit: int = 0
    data: Path | None = None
    exclude: Path | None = None
    strengthen: bool = True

    def __post_init__(self) -> None:
        select_families(self.families)
        for name in ("max_corruptions", "per_problem"):
            if getattr(self, name) < 1:
                raise OnpolError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}.")


@dataclass
class PrepareReport:
    """What was built.

    Attributes:
        sources: programs looked at.
        problems: sources with at least one item.
        items: lines of the file.
        families: items by family (an item with two families counts for both).
        dropped: sources without items, by reason.
        tests_added: asserts added by strengthening, over all sources.
        seconds: wall time of this call.
    """

    sources: int = 0
    problems: int = 0
    items: int = 0
    families: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    tests_added: int = 0
    seconds: float = 0.0


@dataclass
class _Entry:
    """One source on its way: a line of the partial file."""

    source_id: str
    rows: list[Record] = field(default_factory=list)
    dropped: str = ""
    tests_added: int = 0


def prepare(
    options: PrepareOptions, out: Path, judge: Judge, *, resume: bool = False, progress: Progress | None = None
) -> PrepareReport:
    """Build the data set and write it to `out` (.jsonl or .parquet) atomically.

    A partial file beside `out` holds what is finished; an interrupted call goes on from it with
    `resume`.

    Args:
        options: what to build.
        out: the file.
        judge: the sandbox.
        resume: go on from a partial file.
        progress: told (sources done, all sources) after each chunk.

    Raises:
        OnpolError: `out` exists, a partial file exists and is of other options or `resume` is not
            set, or the pool is not usable.
    """
    started = time.monotonic()
    format_of(out)
    if out.exists():
        raise OnpolError(f"{out} exists. Remove it or choose another --out.")
    sources = _pool(options)
    partial = _Partial(out.with_name(out.name + ".partial"), options, sources, resume)
    done = len(partial.entries)
    while done < len(sources):
        chunk = sources[done : done + CHUNK]
        partial.add(_process(chunk, options, judge))
        done += len(chunk)
        if progress:
            progress(done, len(sources))
    rows = [row for entry in partial.entries for row in entry.rows]
    if not rows:
        raise OnpolError(f"No item was made of {len(sources)} sources: {dict(_dropped(partial.entries))}.")
    write_records(out, rows)
    partial.path.unlink()
    return _report(partial.entries, time.monotonic() - started)


def _pool(options: PrepareOptions) -> list[Source]:
    sources = read_sources(options.source, options.data)
    if options.exclude is not None:
        slugs = leetcode_slugs(options.exclude)
        sources = [source for source in sources if source.source_id not in slugs]
    return sources[: options.limit or None]


def _dropped(entries: Sequence[_Entry]) -> Counter[str]:
    return Counter(entry.dropped for entry in entries if entry.dropped)


def _report(entries: Sequence[_Entry], seconds: float) -> PrepareReport:
    rows = [row for entry in entries for row in entry.rows]
    return PrepareReport(
        sources=len(entries),
        problems=sum(bool(entry.rows) for entry in entries),
        items=len(rows),
        families=dict(Counter(name for row in rows for name in dict.fromkeys(row["families"])).most_common()),
        dropped=dict(_dropped(entries).most_common()),
        tests_added=sum(entry.tests_added for entry in entries),
        seconds=seconds,
    )


class _Partial:
    """The finished sources of an unfinished file: a header line, then one line a source."""

    def __init__(self, path: Path, options: PrepareOptions, sources: Sequence[Source], resume: bool) -> None:
        self.path = path
        self.entries: list[_Entry] = []
        pool = _sha256(*(part for s in sources for part in (s.source_id, s.original, s.tests.source)))
        # Through JSON, as the header is read back: paths become texts.
        self.header = json.loads(json.dumps({"options": asdict(options), "pool_sha256": pool}, default=str))
        if path.exists():
            if not resume:
                raise OnpolError(f"{path} is of an interrupted run. Go on with --resume, or remove it.")
            self._read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write("w", [self.header, *(asdict(entry) for entry in self.entries)])

    def _read(self) -> None:
        lines = self.path.read_text("utf-8").split("\n")
        whole = [json.loads(line) for line in lines[:-1]]  # what follows the last newline was cut off
        if not whole or whole[0] != self.header:
            raise OnpolError(f"{self.path} was made with other options or data. Remove it, or choose another --out.")
        self.entries = [_Entry(**line) for line in whole[1:]]

    def add(self, entries: Sequence[_Entry]) -> None:
        self.entries += entries
        self._write("a", [asdict(entry) for entry in entries])

    def _write(self, mode: str, values: Sequence[Any]) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _process(sources: Sequence[Source], options: PrepareOptions, judge: Judge) -> list[_Entry]:
    """All steps for some sources. Each step asks the sandbox once, so that its workers stay busy."""
    entries = {source.source_id: _Entry(source.source_id) for source in sources}
    passing = _passing(sources, judge, entries)
    stronger = _strengthened(passing, options, judge) if options.strengthen else passing
    for before, after in zip(passing, stronger, strict=True):
        entries[after.source_id].tests_added = _asserts(after.tests) - _asserts(before.tests)
    for source, kept in _failing(stronger, options, judge):
        entry = entries[source.source_id]
        if isinstance(kept, str):
            entry.dropped = kept
        else:
            entry.rows = [_row(source, mutant, number) for number, mutant in enumerate(kept)]
    return list(entries.values())


def _asserts(tests: EditTests) -> int:
    return tests.source.count("assert candidate(")


def _job(tests: EditTests, code: str) -> Job:
    return with_budget(tests).job(instrument(code), CPU_S, WALL_S)


def _passing(sources: Sequence[Source], judge: Judge, entries: dict[str, _Entry]) -> list[Source]:
    """Sources whose original passes; the others are dropped."""
    verdicts = judge.run([_job(source.tests, source.original) for source in sources])
    for source, verdict in zip(sources, verdicts, strict=True):
        if not verdict.passed:
            slow = spent(verdict.detail)
            entries[source.source_id].dropped = "original takes too long" if slow else "original fails its tests"
    return [source for source, verdict in zip(sources, verdicts, strict=True) if verdict.passed]


def _strengthened(sources: Sequence[Source], options: PrepareOptions, judge: Judge) -> list[Source]:
    """The sources with added tests, where some could be made."""
    wanted: dict[int, list[tuple[Any, ...]]] = {}
    for index, source in enumerate(sources):
        if can_be_strengthened(source.tests, source.statement + source.details):
            examples = example_inputs(source.tests)
            if examples and source.tests.parameters:
                rng = derive_rng(options.seed, "inputs", source.source_id)
                wanted[index] = vary(examples, rng, ADDED_TESTS)
    wanted = {index: inputs for index, inputs in wanted.items() if inputs}
    jobs = [_reference(sources[index], inputs) for index, inputs in wanted.items()]
    stronger = list(sources)
    for (index, inputs), answer in zip(wanted.items(), judge.results(jobs) if jobs else [], strict=True):
        pairs = [
            (given, result)
            for number, (given, result) in enumerate(zip(inputs, answer.results, strict=False))
            if number not in answer.errors and is_exact(result)
        ]
        if pairs:
            source = sources[index]
            script = with_tests(source.tests, [given for given, _ in pairs], [result for _, result in pairs])
            stronger[index] = replace(source, tests=replace(source.tests, source=script))
    return _confirmed(sources, stronger, judge)


def _confirmed(sources: Sequence[Source], stronger: Sequence[Source], judge: Judge) -> list[Source]:
    """Each stronger source whose original passes once more (a result may depend on hash order), else the old one."""
    changed = [index for index, source in enumerate(sources) if stronger[index] is not source]
    verdicts = judge.run([_job(stronger[index].tests, sources[index].original) for index in changed])
    good = {index for index, verdict in zip(changed, verdicts, strict=True) if verdict.passed}
    return [stronger[index] if index in good else source for index, source in enumerate(sources)]


def _reference(source: Source, inputs: Sequence[tuple[Any, ...]]) -> ReferenceJob:
    return ReferenceJob(
        source=instrument(source.original),
        entry_point=source.tests.entry_point,
        calls=tuple(tuple(plain(argument) for argument in given) for given in inputs),
        preamble=with_budget(source.tests).preamble,
        cpu_s=CPU_S,
    )


def _failing(
    sources: Sequence[Source], options: PrepareOptions, judge: Judge
) -> Iterator[tuple[Source, list[Corruption] | str]]:
    """For each source its mutants that fail, at most `per_problem`, or why there are none."""
    waiting = {source.source_id: _candidates(source, options) for source in sources}
    kept: dict[str, list[Corruption]] = {name: [] for name in waiting}
    none, all_pass = "no family applies, or too long", "no mutant fails its tests"
    reasons = {name: all_pass if mutants else none for name, mutants in waiting.items()}
    # In rounds: most mutants fail, so that most of the spare candidates need not be run.
    while any(waiting.values()):
        flat: list[tuple[Source, Corruption]] = []
        for source in sources:
            missing = options.per_problem - len(kept[source.source_id])
            flat += [(source, mutant) for mutant in waiting[source.source_id][:missing]]
            waiting[source.source_id] = waiting[source.source_id][missing:] if missing else []
        verdicts = judge.run([_job(source.tests, mutant.source) for source, mutant in flat])
        for (source, mutant), verdict in zip(flat, verdicts, strict=True):
            if verdict.status is Status.FAILED and not spent(verdict.detail):
                kept[source.source_id].append(mutant)
    for source in sources:
        yield source, kept[source.source_id] or reasons[source.source_id]


def _candidates(source: Source, options: PrepareOptions) -> list[Corruption]:
    """Distinct mutants in the order drawn; more than are kept, since some will pass."""
    rng = derive_rng(options.seed, "corrupt", source.source_id)
    names = select_families(options.families)
    found: dict[str, Corruption] = {}
    for _ in range(2 + 2 * options.per_problem):
        mutant = corrupt(source.original, names, rng, options.max_corruptions)
        if mutant is not None and len(mutant.source) < LONGEST:
            found.setdefault(mutant.source, mutant)
    return list(found.values())


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _row(source: Source, mutant: Corruption, number: int) -> Record:
    tests = source.tests
    return {
        "problem_id": f"{source.source_id}#{number}",
        "source_id": source.source_id,
        "statement": source.statement,
        "original": source.original,
        "corrupted": mutant.source,
        "families": list(mutant.families),
        "sites": list(mutant.sites),
        "tests": tests.source,
        "test_kind": tests.kind,
        "entry_point": tests.entry_point,
        "preamble": tests.preamble,
        "original_sha256": _sha256(source.original),
        "corrupted_sha256": _sha256(mutant.source),
        "tests_sha256": _sha256(tests.preamble, tests.source),
    }
