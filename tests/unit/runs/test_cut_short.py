"""Writers of folders that are cut short at any change on disk: what was whole stays, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onpol_cli.core.errors import RunFailed
from onpol_cli.runs import checkpoint
from onpol_cli.runs.checkpoint import seal, step_folder, verify, write_folder
from onpol_cli.runs.rundir import RunDir

KILLED = """
import json, os, signal, sys
from pathlib import Path
from onpol_cli.runs.checkpoint import prune, step_folder, verify, write_folder
from onpol_cli.runs.rundir import RunDir

CHANGES = ("open", "os.mkdir", "os.chmod", "os.rename", "os.remove", "os.rmdir")
os.fsync = lambda handle: None  # a killed process loses nothing that it has written

def filled(text):
    def fill(folder):
        (folder / "model").mkdir()
        for name in ("learner.pt", "model/config.json"):
            (folder / name).write_text(text)
    return fill

def write(path, text, step):
    with RunDir.open(path, resume=True) as run:
        write_folder(run.path / "best", filled(text))
        write_folder(step_folder(run.state, step), filled(text))
        prune(run.state, 1, newest=step)

def killed(path, number):
    '''Whether a process died before its `number`-th change on disk, and not after all of them.'''
    pid = os.fork()
    if pid == 0:
        left = number
        def hook(event, arguments):
            nonlocal left
            left -= event in CHANGES
            if event in CHANGES and left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write(path, "new", 7)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0

def seen(path):
    '''Texts of best/ and of the states, and what is hidden, after a resume that writes nothing.'''
    with RunDir.open(path, resume=True) as run:
        hidden = [item.name for item in run.path.rglob(".*.*")]
        verify(run.path / "best")
        best = (run.path / "best" / "model" / "config.json").read_text()
        states = [item for item in sorted(run.state.iterdir()) if (item / "hashes.json").is_file()]
        for item in states[-1:]:
            verify(item, ["learner.pt"])
        return best, states[-1].name, hidden

rows, number = [], 1
while True:
    path = Path(sys.argv[1]) / str(number)
    write(path, "old", 3)
    if not killed(path, number):
        break
    rows.append((sorted(item.name for item in path.glob(".best.*")), *seen(path)))
    number += 1
print(json.dumps(rows))
"""


def test_a_resume_after_kill_9_at_any_change_on_disk_finds_all_that_was_whole(tmp_path: Path) -> None:
    """Between the two renames `best/` is there under another name only; a resumed run saves other steps."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row for row in rows if row[3]] == []
    assert [(row[1], row[2]) for row in rows[:1] + rows[-1:]] == [("old", "step-0000003"), ("new", "step-0000007")]
    assert any([name.rsplit(".")[-1] for name in row[0]] == ["old", "tmp"] and row[1] == "old" for row in rows)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_folder_is_put_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target, replace = tmp_path / "best", os.replace
    write_folder(target, lambda folder: (folder / "weights").write_bytes(b"first") and None)

    def broken(source: Path, to: Path) -> None:
        if source.suffix == ".tmp":
            raise error
        replace(source, to)

    monkeypatch.setattr(checkpoint.os, "replace", broken)
    with pytest.raises(RunFailed if isinstance(error, OSError) else KeyboardInterrupt):
        write_folder(target, lambda folder: (folder / "weights").write_bytes(b"second") and None)
    verify(target)
    assert (target / "weights").read_bytes() == b"first" and list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_put_back_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".best.77.old").mkdir()
    monkeypatch.setattr(checkpoint.LOGGER, "propagate", True)

    def broken(source: Path, to: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint.os, "replace", broken)
    checkpoint.settle(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [".best.77.old"]
    assert f"{tmp_path}/.best.77.old back to best: Input/output error. Move it by hand." in caplog.text


def test_a_resume_clears_what_is_left_of_any_step_and_no_folder_of_a_person(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunDir.open(path, resume=False) as run:
        run.update_manifest(run="run")
    kept = (".notes.tmp", ".vscode", "state/.step-0000007.backup.old", "state/mine.7.tmp")
    for name in (".checkpoint.7.tmp", "state/.step-0000007.77.tmp", "state/.step-0000009.8.old", *kept):
        (path / name).mkdir(parents=True)
        (path / name / "weights").write_bytes(b"half")
    with RunDir.open(path, resume=True) as run:
        found = {str(item.relative_to(path)) for item in [*path.iterdir(), *run.state.iterdir()] if item.is_dir()}
    assert found == {"state", "state/step-0000009", *kept}


def test_directories_are_on_disk_before_the_rename_and_their_entries_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was synced is lost in a power cut if the entry of its directory was not."""
    told: list[str] = []
    sync, replace = os.fsync, os.replace

    def name_of(path: str | Path) -> str:
        return Path(path).relative_to(tmp_path).as_posix().replace(f".{os.getpid()}.tmp", "")

    def synced(handle: int) -> None:
        told.append(name_of(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def replaced(source: Path, to: Path) -> None:
        told.append(f"{name_of(source)} -> {name_of(to)}")
        replace(source, to)

    def fill(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        seal(folder / "model")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_folder(step_folder(tmp_path / "run" / "state", 1), fill)
    before, after = told[: told.index(rename := "run/state/.step-0000001 -> run/state/step-0000001")], told[-1]
    assert {".", "run", "run/state/.step-0000001", "run/state/.step-0000001/model"} <= set(before)
    assert told[-2] == rename and after == "run/state"
    written = [place for place in before if "step" in place]
    assert written.index("run/state/.step-0000001/hashes.json") < written.index("run/state/.step-0000001")
