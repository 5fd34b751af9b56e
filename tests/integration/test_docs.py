"""Every `onpol` command written in README.md and docs/ is run here, small, or dry where it needs more than seconds.

`HOW` is the table of what is added to each command. A command in the text that is not in the table fails a test.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from onpol_cli import cli
from onpol_cli.process import run
from onpol_cli.runs.rundir import SAMPLES, read_lines, read_manifest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ONE = ("learner.threads=1", "sandbox.workers=1")
SMALL = (
    *("method.steps=1", "method.epochs=0", "method.batch=2", "method.prompts=2", "method.group=2"),
    *("task.problems=12", "task.validation_problems=2", "rollout.sampling.max_new_tokens=16", *ONE),
)
EVAL_SMALL = ("eval.problems=2", "eval.temperatures=[1.0]", "eval.max_new_tokens=16", *ONE)
SPAN = re.compile(r"`(onpol [a-z][^`]*)`")


@dataclass(frozen=True)
class How:
    """How a documented command is run here.

    Attributes:
        more: words added to it.
        runs: how it is told the folder of runs: an override, an option, or not at all.
        status: its exit status.
        parse: only its words are parsed, because it needs a file or a network that is not here.
    """

    more: tuple[str, ...] = ()
    runs: str = "paths.runs="
    status: int = 0
    parse: bool = False


DRY = How(("--dry-run",))
PARSE = How(parse=True)
HOW = {
    "onpol train tutor method=sft seed=1": How(SMALL),
    "onpol distill student tutor=latest:sft method=opd": DRY,
    "onpol eval --bench tiny-edit-ood --bench tiny-codegen --model latest:opd": DRY,
    "onpol eval --bench livecodebench --data test6.jsonl --answers answers.jsonl --json": PARSE,
    "onpol compare --out results/mine --format csv,md,png --html report.html": How(runs="--runs="),
    "onpol reproduce tiny --quick": DRY,
    "onpol reproduce tiny matrix.seeds=[0,1,2]": DRY,
    'onpol sweep "distill student" tutor=latest:sft,latest:rl seed=1,2': DRY,
    "onpol runs list": How(runs="--runs="),
    "onpol doctor": How(),
    "onpol data prepare minimal-edit --source leetcode --data FILE --out ood.jsonl": PARSE,
    "onpol data list": How(runs=""),
    "onpol eval --bench NAME --answers FILE": PARSE,
    "onpol compare --claims FILE": PARSE,
    "onpol data prepare minimal-edit --source leetcode --data LeetCodeDataset-v0.2.0-train.jsonl.gz "
    "--families out-of-domain --max-corruptions 5 --seed 0 --out ood.jsonl": PARSE,
    "onpol data verify ood.jsonl": PARSE,
    "onpol train tutor method=sft task=minimal-edit task.data=ood.jsonl model.path=/path/to/model": PARSE,
    "onpol eval --bench minimal-edit --data 400.jsonl --answers answers.jsonl --run-dir graded --json": PARSE,
    "onpol doctor --plan experiment=paper": How(),
    "onpol doctor --plan experiment=paper --gpu-gib 139": How(),
    "onpol doctor --plan": How(),
    "onpol reproduce paper --dry-run": How(),
    "onpol reproduce small model.path=/models/Qwen3-0.6B": DRY,
    'onpol sweep "train tutor" method=rl model.lora.rank=1,8,16,32,64': DRY,
}
"""A command as the text has it (without its comment), and how it is run here."""
NAMES = {"onpol compare"}
"""Spans that name a command without its options."""


def code_lines(text: str) -> list[str]:
    """Lines of fenced and indented code blocks, continued lines joined."""
    lines, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return lines


def commands_of(text: str) -> list[str]:
    """Every `onpol` command of a page: code blocks and spans, comments cut off, spaces made one."""
    found = [line.split(" #")[0] for line in code_lines(text) if re.match(r"(\$ )?onpol [a-z]", line)]
    found += [" ".join(span.split()) for span in SPAN.findall(text)]
    return list(dict.fromkeys(" ".join(line.removeprefix("$ ").split()) for line in found))


DOCUMENTED = list(dict.fromkeys(command for page in PAGES for command in commands_of(page.read_text("utf-8"))))


def test_commands_are_found_in_blocks_fences_and_spans():
    page = "`onpol a\nb`\n\n    onpol c d=1  # why\n    onpol e \\\n      --f\n    onpol_cli/\n```\n$ onpol g\n```\n"
    assert commands_of(page) == ["onpol c d=1", "onpol e --f", "onpol g", "onpol a b"]


def test_every_documented_command_is_in_the_table():
    new = [command for command in DOCUMENTED if command not in HOW and command not in NAMES]
    assert not new, f"new in the docs: add it to the table HOW of {Path(__file__).name}: {new}"


def test_the_table_has_nothing_that_the_docs_lost():
    assert (HOW.keys() | NAMES) - set(DOCUMENTED) == set()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a tutor of each kind that the text names, made by the documented command, and an evaluation."""
    folder = tmp_path_factory.mktemp("docs") / "runs"
    here = (*SMALL, f"paths.runs={folder}")
    for word in ("method=sft", "method=rl"):
        assert run(cli.app, ["train", "tutor", word, "seed=1", *here]) == 0
    student = ["distill", "student", "tutor=latest:sft", "method=opd"]
    assert run(cli.app, [*student, *here]) == 0
    words = ["eval", "--bench", "tiny-edit-ood", "--bench", "tiny-codegen", "--model", "latest:opd"]
    assert run(cli.app, [*words, *EVAL_SMALL, f"paths.runs={folder}"]) == 0
    return folder


def words_of(command: str, how: How, folder: Path) -> list[str]:
    """The words that are run here."""
    told = [how.runs + str(folder)] if how.runs else []
    return [*shlex.split(command)[1:], *how.more, *told]


def parse(words: list[str]) -> None:
    """Walk down click's own parser to the command, without calling it; unknown commands and options raise."""
    import typer

    command, context = typer.main.get_command(cli.app), None
    while True:
        context = command.make_context(words[0], words, parent=context, resilient_parsing=False)
        if not hasattr(command, "commands"):
            return
        rest = [*context._protected_args, *context.args]
        _, command, words = command.resolve_command(context, rest)


@pytest.mark.parametrize("command", [command for command, how in HOW.items() if not how.parse])
def test_a_documented_command_runs(command, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    how = HOW[command]
    folder = runs if "train tutor method" not in command else tmp_path / "runs"
    status = run(cli.app, words_of(command, how, folder))
    out = capsys.readouterr()
    assert status == how.status, out.err
    assert out.out.strip()


@pytest.mark.parametrize("command", [command for command, how in HOW.items() if how.parse])
def test_a_documented_command_that_needs_files_is_understood(command):
    parse(shlex.split(command)[1:])
    overrides = [word for word in shlex.split(command) if re.match(r"[a-z_.]+=", word)]
    if overrides:
        from onpol_cli.core.compose import compose

        assert compose(overrides).task.name == "minimal-edit"


@pytest.mark.parametrize("words", [["eval", "--bunch", "x"], ["data", "prepair"], ["compare", "--claim"]])
def test_what_is_not_a_command_is_not_understood(words):
    with pytest.raises(Exception, match=r"No such|requires|missing|Missing"):
        parse(words)


def test_what_the_commands_left(runs):
    manifests = {path.name: read_manifest(path) for path in runs.iterdir() if (path / "manifest.json").is_file()}
    assert len(manifests) == 4 and all(manifest["status"] == "done" for manifest in manifests.values())
    (evaluation,) = [name for name in manifests if name.startswith("eval-")]
    assert {row["bench"] for row in read_lines(runs / evaluation / SAMPLES)} == {"tiny-edit-ood", "tiny-codegen"}
