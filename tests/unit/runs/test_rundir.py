"""Run directories: exclusive, append-only, honest about torn lines; lookup and checkpoints that are whole or absent."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.runs.checkpoint import latest_valid, prune, seal, step_folder, steps_saved, verify, write_folder
from onpol_cli.runs.lookup import find_run, list_runs
from onpol_cli.runs.manifest import hardware, provenance, versions
from onpol_cli.runs.rundir import LOCK, METRICS, RunDir, is_locked, last_line, read_lines, read_manifest


def make(root: Path, name: str, **facts: object) -> Path:
    """A closed run with a manifest."""
    with RunDir.open(root / name, resume=False) as run:
        run.update_manifest(run=name, **facts)
    return root / name


def checkpoint(root: Path, name: str, method: str, started: str, status: str = "done") -> None:
    """A run with final weights."""
    path = make(root, name, method_choice=method, started=started, status=status)
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "config.json").write_text("{}")


def test_an_existing_run_is_refused_unless_resumed(tmp_path: Path) -> None:
    path = make(tmp_path, "one")
    with pytest.raises(OnpolError, match=r"exists already\. Add --resume"):
        RunDir.open(path, resume=False)
    with RunDir.open(path, resume=True) as run:
        assert run.resumed


def test_an_empty_folder_is_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with RunDir.open(tmp_path / "new", resume=False) as run:
        assert not run.resumed and run.name == "new"


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OnpolError, match="is a file, not a run directory"):
        RunDir.open(tmp_path / "file", resume=False)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "one", resume=False) as run:
        run.update_manifest(run="one")
        assert is_locked(run.path)
        with pytest.raises(OnpolError, match="is being written by process"):
            RunDir.open(tmp_path / "one", resume=True)
    assert not is_locked(tmp_path / "one")


def test_a_look_at_the_lock_lets_a_writer_in_after_it(tmp_path: Path) -> None:
    path = make(tmp_path, "one")
    with (path / LOCK).open() as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        assert not is_locked(path)
    with RunDir.open(path, resume=True):
        assert is_locked(path)


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "one", resume=False) as run:
        run.log({"step": 0, "loss": 1.5})
        assert list(read_lines(run.path / METRICS)) == [{"step": 0, "loss": 1.5}]
        run.log({"step": 1, "loss": 1.0})
    assert last_line(tmp_path / "one" / METRICS) == {"step": 1, "loss": 1.0}


def test_steps_that_are_made_again_are_dropped_first(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "one", resume=False) as run:
        for step in range(-1, 4):
            run.log({"step": step})
        run.keep_steps_before(2)
        run.log({"step": 2, "again": True})
        assert [row["step"] for row in read_lines(run.path / METRICS)] == [-1, 0, 1, 2]


def test_dropping_steps_without_room_is_said_so(tmp_path: Path) -> None:
    path = make(tmp_path, "one")
    script = (
        "import resource, signal, sys; from pathlib import Path; from onpol_cli.runs.rundir import RunDir\n"
        "from onpol_cli.core.errors import RunFailed\n"
        "with RunDir.open(Path(sys.argv[1]), resume=True) as run:\n"
        "    run.log({'step': 0, 'pad': 'x' * 5000})\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "    try: run.keep_steps_before(5)\n"
        "    except RunFailed as error: sys.exit(f'said: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.stderr.startswith(f"said: Cannot write {path / METRICS}: File too large"), done.stderr
    assert [row["step"] for row in read_lines(path / METRICS)] == [0] and not list(path.glob(".metrics*"))


NO_ROOM = """
import os, resource, signal, sys
from pathlib import Path
from onpol_cli.core.errors import RunFailed
from onpol_cli.runs.rundir import RunDir, is_locked

def limit(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

path, case = Path(sys.argv[1]), sys.argv[2]
told = []
if case == "locked":
    limit(0)
try:
    with RunDir.open(path, resume=True) as run:
        if case != "locked":
            limit(1000)
        if case in ("appended", "again"):
            try:
                run.append("rows.jsonl", [{"n": n, "pad": "x" * 90} for n in range(20)])
            except RunFailed as error:
                told.append(error)
        if case == "again":
            limit(resource.RLIM_INFINITY)
            run.append("rows.jsonl", [{"n": 99}])
        if case in ("untold", "under way"):
            run.append("rows.jsonl", [])
            run._files["rows.jsonl"].write("x" * 2000)
        if case == "under way":
            raise KeyboardInterrupt
        assert is_locked(path)
except (RunFailed, KeyboardInterrupt) as error:
    told.append(error)
print(*(f"{type(error).__name__} {error}" for error in told), f"locked {is_locked(path)}", sep="\\n")
"""


UNWRITTEN = "RunFailed Cannot write {}: File too large. Free space, then repeat with --resume."


@pytest.mark.parametrize(
    ("case", "told", "rows"),
    [
        ("appended", [UNWRITTEN], range(9)),
        ("again", [UNWRITTEN], [*range(9), 99]),
        ("untold", [UNWRITTEN], []),
        ("under way", ["KeyboardInterrupt "], []),
        ("locked", [], []),
    ],
)
def test_rows_without_room_are_told_once_and_the_lock_is_released(tmp_path: Path, case: str, told: list, rows) -> None:  # type: ignore[no-untyped-def, type-arg]
    path = make(tmp_path, "one")
    done = subprocess.run([sys.executable, "-c", NO_ROOM, str(path), case], capture_output=True, text=True)
    expected = [line.format(path / "rows.jsonl") for line in told]
    assert done.stdout.splitlines() == [*expected, "locked False"], done.stderr
    assert [row["n"] for row in read_lines(path / "rows.jsonl")] == [*rows]
    assert ("WARNING" in done.stderr or "Cannot write" in done.stderr) == (case == "under way"), done.stderr


def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2')
    assert list(read_lines(file)) == [{"a": 1}] and last_line(file) == {"a": 1}
    file.write_text('{"a": 1\n{"a": 2}\n{"a": 3}\n')
    with pytest.raises(OnpolError, match="line 1: not JSON"):
        list(read_lines(file))


def test_the_last_line_is_found_without_reading_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"n": n, "pad": "x" * 50}) + "\n" for n in range(200)))
    assert last_line(file, size=300)["n"] == 199
    assert last_line(tmp_path / "none.jsonl") == {}


def test_manifest_facts_are_merged(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "one", resume=False) as run:
        run.update_manifest(status="running", seed=1)
        run.update_manifest(status="done")
    assert read_manifest(tmp_path / "one") == {"status": "done", "seed": 1}


def test_provenance_has_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-hunter2")
    facts = provenance(["onpol", "eval"], 3)
    assert facts["command"] == ["onpol", "eval"] and facts["seed"] == 3
    assert "hunter2" not in json.dumps(facts) and "torch" in versions() and hardware()["cores"] >= 1


def test_lookup_by_name_prefix_path_and_latest(tmp_path: Path) -> None:
    checkpoint(tmp_path, "sft-old", "sft", "2026-01-01")
    checkpoint(tmp_path, "sft-new", "sft", "2026-02-01")
    checkpoint(tmp_path, "sft-failed", "sft", "2026-03-01", status="failed")
    assert find_run("sft-old", tmp_path).name == find_run("sft-o", tmp_path).name == "sft-old"
    assert find_run(str(tmp_path / "sft-new"), Path("/nowhere")).name == "sft-new"
    assert find_run("latest:sft", tmp_path).name == "sft-new"
    assert [info.name for info in list_runs(tmp_path)] == ["sft-old", "sft-new", "sft-failed"]


def test_lookup_mistakes_list_what_there_is(tmp_path: Path) -> None:
    checkpoint(tmp_path, "sft-a", "sft", "2026-01-01")
    checkpoint(tmp_path, "sft-b", "sft", "2026-01-02")
    for spec, text in (
        ("sft", "Run 'sft' is ambiguous: sft-a, sft-b"),
        ("sft-c", "Nearest: sft-"),
        ("latest:rl", "There are: sft."),
    ):
        with pytest.raises(OnpolError, match=text):
            find_run(spec, tmp_path)


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    write_folder(target, lambda folder: (folder / "weights").write_bytes(b"first") and None)

    def broken(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFailed, match=r"No space left on device\. Free space, then repeat with --resume"):
        write_folder(target, broken)
    assert (target / "weights").read_bytes() == b"first" and [item.name for item in tmp_path.iterdir()] == [
        "checkpoint"
    ]
    verify(target)


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    for name in (".step.77.tmp", ".step.77.old", ".other.77.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"half")
    write_folder(tmp_path / "step", lambda folder: (folder / "weights").write_bytes(b"whole") and None)
    assert sorted(item.name for item in tmp_path.iterdir()) == [".other.77.tmp", "step"]


@pytest.mark.parametrize("torn", ["", '{"step": 1, "tok', '{"step": 0}\n{"st', '{"step": 0}\n'])
def test_rows_appended_after_a_torn_line_stand_on_their_own(tmp_path: Path, torn: str) -> None:
    path = make(tmp_path, "one")
    (path / "rows.jsonl").write_text(torn)
    whole = list(read_lines(path / "rows.jsonl"))
    with RunDir.open(path, resume=True) as run:
        run.append("rows.jsonl", [{"step": 1}, {"step": 2}])
    assert list(read_lines(path / "rows.jsonl")) == [*whole, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / "weights").write_bytes(b"flip"), "does not match its hash"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "hashes.json").unlink(), "was not finished"),
        (lambda folder: (folder / "hashes.json").write_text("{"), "is damaged"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage, text: str) -> None:  # type: ignore[no-untyped-def]
    write_folder(tmp_path / "c", lambda folder: (folder / "weights").write_bytes(b"good") and None)
    damage(tmp_path / "c")
    with pytest.raises(OnpolError, match=text):
        verify(tmp_path / "c")


def test_the_newest_whole_state_is_taken_and_older_ones_pruned(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_folder(step_folder(tmp_path, step), lambda folder: (folder / "learner.pt").write_bytes(b"state") and None)
    (step_folder(tmp_path, 3) / "learner.pt").write_bytes(b"torn")
    found = latest_valid(tmp_path)
    assert found is not None and found[0] == 2
    prune(tmp_path, 1)
    assert steps_saved(tmp_path) == [3] and latest_valid(tmp_path / "none") is None
    with pytest.raises(OnpolError, match="No usable state"):
        latest_valid(tmp_path)


def high_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.write_bytes(content)


def without_state(file: Path) -> None:
    hashes = json.loads(file.read_text())
    del hashes["learner.pt"]
    file.write_text(json.dumps(hashes))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (high_bit, "hashes.json is damaged"),
        (lambda file: file.write_text("[]"), "hashes.json is damaged"),
        (lambda file: file.write_text("{}"), "hashes.json is damaged"),
        (lambda file: file.write_text("7"), "hashes.json is damaged"),
        (lambda file: file.write_text(""), "hashes.json is damaged"),
        (without_state, "does not list learner.pt"),
        (lambda file: file.write_text(file.read_text().replace("learner", "mearner")), "does not list learner.pt"),
    ],
)
def test_of_damaged_hashes_the_state_before_is_offered(tmp_path: Path, damage, text: str) -> None:  # type: ignore[no-untyped-def]
    def fill(folder: Path) -> None:
        (folder / "learner.pt").write_bytes(b"state")
        (folder / "other").write_bytes(b"more")

    for step in (1, 2):
        write_folder(step_folder(tmp_path, step), fill)
    damage(step_folder(tmp_path, 2) / "hashes.json")
    with pytest.raises(OnpolError, match=text):
        verify(step_folder(tmp_path, 2), ["learner.pt"])
    found = latest_valid(tmp_path)
    assert found is not None and found[0] == 1


def test_a_state_without_its_main_file_is_none(tmp_path: Path) -> None:
    write_folder(step_folder(tmp_path, 1), lambda folder: (folder / "other").write_bytes(b"more") and None)
    with pytest.raises(OnpolError, match="No usable state"):
        latest_valid(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_weights_that_are_not_listed_are_not_trusted(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "c", lambda folder: (folder / "tokenizer.json").write_bytes(b"good") and None)
    verify(tmp_path / "c")
    (tmp_path / "c" / name).write_bytes(b"from elsewhere")
    with pytest.raises(OnpolError, match=f"does not list {name}"):
        verify(tmp_path / "c")


def test_a_model_inside_a_state_has_hashes_of_its_own_that_the_state_covers(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "learner.pt").write_bytes(b"state")
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        seal(folder / "model")

    write_folder(tmp_path / "s", fill)
    verify(tmp_path / "s")
    verify(tmp_path / "s" / "model", ["config.json"])
    (tmp_path / "s" / "model" / "hashes.json").write_text("{}")
    with pytest.raises(OnpolError, match=r"model/hashes\.json does not match"):
        verify(tmp_path / "s")


def test_pruning_never_takes_the_state_just_written(tmp_path: Path) -> None:
    """A damaged state that a resume has passed over is newer by its number only."""
    for step in (2, 3, 7):
        write_folder(step_folder(tmp_path, step), lambda folder: (folder / "learner.pt").write_bytes(b"s") and None)
    (tmp_path / "step-old").mkdir()  # a person's own folder is no state
    prune(tmp_path, 1, newest=3)
    assert steps_saved(tmp_path) == [3] and (tmp_path / "step-old").is_dir()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (Exception("File too large (os error 27)"), "File too large"),
        (Exception("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (KeyError("lm_head.weight"), None),
    ],
)
def test_only_failed_writes_are_called_so(tmp_path: Path, error: Exception, reason: str | None) -> None:
    def broken(folder: Path) -> None:
        raise error

    kind, text = (RunFailed, f": {reason}\\. Free space") if reason else (type(error), ".")
    with pytest.raises(kind, match=text) as caught:
        write_folder(tmp_path / "c", broken)
    assert (caught.value.__cause__ if reason else caught.value) is error and list(tmp_path.iterdir()) == []
