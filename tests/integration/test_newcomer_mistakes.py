"""Mistakes that a newcomer makes, each with the exact answer: one line, no traceback, exit 2 (or 1)."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from onpol_cli.cli import app
from onpol_cli.core.compose import compose
from onpol_cli.core.settings import groups
from onpol_cli.process import OUT_OF_MEMORY, run
from onpol_cli.rollout import vllm_env
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages import doctor_checks

METHODS = ", ".join(groups()["method"])
EXPERIMENTS = ", ".join(groups()["experiment"])
BENCHES = (
    "tiny-edit, tiny-edit-ood, tiny-edit-id, tiny-codegen, minimal-edit, humanevalfix, quixbugs, livecodebench, "
    "humaneval, mbpp"
)
MISTAKES = [
    # command, option and override spelling
    ("distil student", "No such command 'distil'. Did you mean 'distill'? See 'onpol --help'."),
    ("train tutr", "No such command 'tutr'. Did you mean 'tutor'? See 'onpol train --help'."),
    (
        "train tutor --seed 1",
        "No such option --seed. Settings have no dashes: seed=VALUE. See 'onpol train tutor --help'.",
    ),
    (
        "train tutor --lr 1e-6",
        "No such option --lr. Settings have no dashes: optim.lr=VALUE. See 'onpol train tutor --help'.",
    ),
    (
        "eval",
        "Which bench? Add --bench NAME, once for each; 'onpol data list' names them. See 'onpol eval --help'.",
    ),
    (
        "reproduce",
        "Which experiment? One of tiny, small, paper: onpol reproduce tiny --quick. See 'onpol reproduce --help'.",
    ),
    (
        "runs show",
        "Which run? Its name, a unique start of it, or latest:METHOD; 'onpol runs list' names them. "
        "See 'onpol runs show --help'.",
    ),
    ("train tutor mehtod=rl", "Unknown setting 'mehtod'. Did you mean: method, method.lam?"),
    ("train tutor lr=1e-6", "Unknown setting 'lr'. Did you mean: optim.lr?"),
    ("train tutor seed 1", "Override 'seed' has no '='. Did you mean seed=1?"),
    ("train tutor seed = 1", "'seed = 1': no spaces around '='. Write key=value, for example seed=1 or method=rl."),
    ("train tutor seed=one", "seed=one is not a whole number."),
    ("train tutor optim.lr=-1", "optim.lr must be >= 0, got -1.0."),
    ("train tutor run.keep_last=0", "run.keep_last must be >= 1, got 0."),
    ("train tutor run.keep_last=-1", "run.keep_last must be >= 1, got -1."),
    ("train tutor method=RL", f"No method named 'RL'. Did you mean method=rl? Choices: {METHODS}."),
    (
        "train tutor rollout.engine=vlm",
        "rollout.engine=vlm is none of: hf, vllm, vllm_server. Did you mean rollout.engine=vllm?",
    ),
    (
        "train tutor seed=1,2",
        "'seed=1,2' lists several values. To run each: onpol sweep \"train tutor\" seed=1,2 - "
        "one list value is written seed=[1,2].",
    ),
    (
        "train tutor eval.benches=[humaneval",
        "Override 'eval.benches=[humaneval' cannot be read. Quote special characters twice, once for the shell: "
        "'model.path=\"a=b\"'; close every bracket: 'eval.benches=[humaneval,mbpp]'.",
    ),
    # runs and tutors
    (
        "distill student paths.runs={runs} --dry-run",
        "Which tutor? Add tutor=RUN, tutor=PATH or tutor=latest:sft. Found: train-sft-s0.",
    ),
    (
        "distill student tutor=latest:rl paths.runs={runs} --dry-run",
        "No finished 'rl' run in {runs}. There are: sft.",
    ),
    (
        "distill student tutor=train-stf paths.runs={runs} --dry-run",
        "No run named 'train-stf' in {runs}. Nearest: train-sft-s0. See 'onpol runs list'.",
    ),
    (
        "distill student tutor=half-done paths.runs={runs} --dry-run",
        "Run half-done has no finished checkpoint (status: interrupted). Finish it with --resume.",
    ),
    (
        "runs show broken --runs {runs}",
        "{runs}/broken/manifest.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)). The run is damaged; remove it or choose another.",
    ),
    (
        "train tutor run.name=train-sft-s0 paths.runs={runs}",
        "Run directory {runs}/train-sft-s0 exists already. Add --resume to go on with it, or choose run.name=OTHER.",
    ),
    (
        "train tutor method=rl method.group=1 paths.runs={runs}",
        "method.group=1 makes every advantage 0. Use at least 2 rollouts per prompt.",
    ),
    # comparison
    (
        "compare --runs {empty}",
        "No finished evaluation in {empty}. Make some: onpol reproduce tiny --quick, or onpol eval --bench NAME.",
    ),
    (
        "compare --claims papr --runs {runs} train-sft-s0",
        "No claims named 'papr': neither a file nor one of lora, paper, tiny, none.",
    ),
    # evaluation and data
    (
        "eval --bench humanval --dry-run",
        f"Unknown task or bench 'humanval'. Did you mean humaneval or humanevalfix? Allowed: {BENCHES}.",
    ),
    (
        "eval --bench humaneval --data {empty}/h.jsonl --dry-run",
        "humaneval: {empty}/h.jsonl does not exist. Get it with `hf download openai/openai_humaneval "
        "openai_humaneval/test-00000-of-00001.parquet --repo-type dataset`, then add --data FILE.",
    ),
    (
        "eval --bench mbpp --dry-run",
        "mbpp needs a data file: --data FILE. Get sanitized-mbpp.json from https://github.com/google-research/"
        "google-research/raw/master/mbpp/sanitized-mbpp.json, then add --data FILE.",
    ),
    (
        "eval --bench humaneval --data {empty}/text.jsonl --dry-run",
        "{empty}/text.jsonl, record 1 (line 1): not valid JSON (Expecting value: line 1 column 1 (char 0)). "
        "The file may be cut off. One JSON object a line is needed.",
    ),
    ("eval --bench tiny-codegen --model m --answers a.jsonl", "Give --model or --answers, not both."),
    (
        "eval --bench humaneval --bench mbpp --data x",
        "--data names one file: give exactly one --bench with it, or eval.data.NAME=FILE.",
    ),
    # sweeps and reproductions
    (
        "sweep tutor seed=1,2",
        "Cannot sweep over 'tutor': the command is 'train tutor' or 'distill student', in quotes. Overrides follow it.",
    ),
    (
        "reproduce tiny --only sftt",
        "No row 'sftt' in this experiment. Rows: base, sft, sft-gentle, sft-overtrained, rl, opd-sft, opd-rl, "
        "opd-sft-overtrained.",
    ),
    ("reproduce tinny", f"No experiment named 'tinny'. Did you mean experiment=tiny? Choices: {EXPERIMENTS}."),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a finished, an interrupted and a damaged run, and one without runs."""
    root = tmp_path_factory.mktemp("newcomer")
    runs, empty = root / "runs", root / "empty"
    empty.mkdir()
    with RunDir.open(runs / "train-sft-s0", resume=False) as run:
        run.update_manifest(run=run.name, status="done", method_choice="sft", model_role="tutor", label="SFT")
        run.checkpoint.mkdir()
        (run.checkpoint / "config.json").write_text("{}")
    with RunDir.open(runs / "half-done", resume=False) as run:
        run.update_manifest(run=run.name, status="interrupted")
    (runs / "broken").mkdir()
    (runs / "broken" / "manifest.json").write_text("{")
    (empty / "text.jsonl").write_text("hello\n")
    return {"runs": runs, "empty": empty}


def test_there_are_enough_of_them() -> None:
    assert len(MISTAKES) >= 25 and len({line for line, _ in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize(("line", "answer"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line(
    line: str,
    answer: str,
    places: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONPOL_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["onpol"])
    words = [
        word.replace("{runs}", str(places["runs"])).replace("{empty}", str(places["empty"])) for word in line.split()
    ]
    assert run(app, words) == 2
    out, err = capsys.readouterr()
    expected = answer.replace("{runs}", str(places["runs"])).replace("{empty}", str(places["empty"]))
    assert (out, err) == ("", f"onpol: {expected}\n")
    assert list(tmp_path.iterdir()) == [], "a mistake must leave nothing behind"


def test_running_out_of_memory_says_what_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    small = typer.Typer(pretty_exceptions_enable=False)

    @small.command()
    def train() -> None:
        raise MemoryError

    assert run(small, []) == 1
    assert capsys.readouterr().err == f"onpol: {OUT_OF_MEMORY}\n"


def test_asking_for_vllm_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_env, "find_spec", lambda name: None)
    (found,) = [item for item in doctor_checks.check_engines(compose(["rollout=vllm"])) if item.level == "error"]
    assert (found.message, found.remedy) == (
        "vLLM is not installed",
        "Install it: pip install 'onpol[vllm]'; or use rollout=hf.",
    )
