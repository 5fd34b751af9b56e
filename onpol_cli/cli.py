"""The command line. Each command composes nothing and computes nothing: it calls one stage.

Imports neither torch nor transformers nor vllm, so that `onpol --help` answers at once; stages are
imported inside commands. Positional `key=value` words are Hydra overrides; options name inputs,
outputs and process matters. Exit status: 0 done, 1 the run failed, 2 bad usage or input, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from onpol_cli import completion

CONTEXT = {"help_option_names": ["-h", "--help"]}
ORDER = ("reproduce", "train", "distill", "eval", "compare", "sweep", "replay", "runs", "data", "doctor", "bench")


class InOrder(typer.core.TyperGroup):
    """Commands in the order in which a newcomer meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, those of `ORDER` first."""
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=InOrder,
    no_args_is_help=True,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
    help="A laboratory bench for on-policy distillation: train tutors, distil students, evaluate, compare.",
    epilog="Start: onpol reproduce tiny --quick. Every command takes --help, and --debug for an error's traceback.",
)
train = typer.Typer(no_args_is_help=True, help="Train a base model or a tutor.")
distill = typer.Typer(no_args_is_help=True, help="Distil a student from a tutor, on-policy.")
data = typer.Typer(no_args_is_help=True, help="Benches and data sets: list, prepare, verify.")
runs = typer.Typer(no_args_is_help=True, help="Run directories: list, show, watch, prune.")
bench = typer.Typer(no_args_is_help=True, help="Measurements of the laboratory itself.")
for name, group in (("train", train), ("distill", distill), ("data", data), ("runs", runs), ("bench", bench)):
    app.add_typer(group, name=name)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings (Hydra overrides); --dry-run checks them.",
        autocompletion=completion.overrides,
    ),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Name, prefix, path or latest:METHOD.", autocompletion=completion.runs)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, say what would run, run nothing.")]
RunsDir = Annotated[
    Path | None, typer.Option("--runs", metavar="DIR", help="Folder of run directories (default: paths.runs).")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Data = Annotated[str | None, typer.Option("--data", metavar="FILE", help="The bench's data file.")]


def _version(value: bool) -> None:
    if value:
        from onpol_cli import __version__

        typer.echo(f"onpol {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `onpol` itself."""


@train.command("tutor", epilog="Example: onpol train tutor method=rl seed=1 method.steps=100")
def train_tutor(
    overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Train a tutor: method=sft (default), sft-gentle, sft-overtrained, rsft, dpo or rl."""
    from onpol_cli.stages.launch import launch_training

    launch_training("tutor", overrides or [], resume=resume, dry_run=dry_run, as_json=as_json)


@train.command("base", epilog="Example: onpol train base method.steps=600 run.name=my-base")
def train_base(
    overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Pretrain a small base model on the procedural world (about half an hour on a CPU)."""
    from onpol_cli.stages.launch import launch_base

    launch_base(overrides or [], resume=resume, dry_run=dry_run, as_json=as_json)


@distill.command("student", epilog="Example: onpol distill student tutor=latest:sft method=opd seed=1")
def distill_student(
    overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Distil a student of tutor=RUN, PATH or latest:METHOD: method=opd, opd-exact, gkd, rl_opd, multi_opd or opsd."""
    from onpol_cli.stages.launch import launch_training

    launch_training("student", overrides or [], resume=resume, dry_run=dry_run, as_json=as_json)


@app.command("eval", epilog="Example: onpol eval --bench livecodebench --data test6.jsonl --model latest:opd --json")
def evaluate(
    benches: Annotated[
        list[str],
        typer.Option("--bench", metavar="NAME", help="Bench; repeat for several.", autocompletion=completion.benches),
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="RUN|PATH", help="Default: model.path (the base).", autocompletion=completion.runs
        ),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", metavar="FILE", help="Grade these answers instead of sampling.")
    ] = None,
    data_file: Data = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="New folder for the records.")
    ] = None,
    as_json: Json = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --answers: count missing answers as no_answer.")
    ] = False,
    release: Annotated[
        str | None,
        typer.Option(
            "--release", metavar="NAME", help="LiveCodeBench: v1 to v6 (one part), release_v1 to _v6 (all up to it)."
        ),
    ] = None,
    start_date: Annotated[
        str | None, typer.Option("--start-date", metavar="YYYY-MM-DD", help="LiveCodeBench: no earlier.")
    ] = None,
    end_date: Annotated[
        str | None, typer.Option("--end-date", metavar="YYYY-MM-DD", help="LiveCodeBench: no later.")
    ] = None,
    difficulty: Annotated[
        str | None, typer.Option("--difficulty", metavar="NAME", help="LiveCodeBench: easy, medium or hard.")
    ] = None,
    platform: Annotated[
        str | None, typer.Option("--platform", metavar="NAME", help="LiveCodeBench: leetcode, atcoder or codeforces.")
    ] = None,
) -> None:
    """Evaluate a model, or grade answers that came from elsewhere, on one or several benches."""
    from onpol_cli.stages.evaluate import EvalRequest, run_evaluation

    filters = {
        "release": release,
        "start_date": start_date,
        "end_date": end_date,
        "difficulty": difficulty,
        "platform": platform,
    }
    request = EvalRequest(
        benches, overrides or [], model, answers, data_file, run_dir, as_json, resume, dry_run, partial, filters
    )
    run_evaluation(request)


@app.command("compare", epilog="Example: onpol compare --out results/tiny --format csv,md,png --html report.html")
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Default: every finished evaluation.", autocompletion=completion.runs),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Self-contained report.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where tables and plots go.")] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help="For --out: of csv,md,tex,json,png,svg.")
    ] = "csv,md,json",
    claims: Annotated[
        str, typer.Option("--claims", metavar="NAME|FILE", help="Claims to judge: paper, tiny, lora, none, or a file.")
    ] = "paper",
    runs_dir: RunsDir = None,
    as_json: Json = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs whose settings differ; the table says so.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Write the comparison of evaluated models: scores, intervals, claims, costs."""
    from onpol_cli.stages.compare import CompareRequest, run_comparison

    run_comparison(CompareRequest(names or [], html, out, formats, claims, runs_dir, as_json, force, dry_run))


@app.command("reproduce", epilog="Example: onpol reproduce tiny --quick; onpol reproduce tiny matrix.seeds=[0,1,2]")
def reproduce(
    experiment: Annotated[
        str, typer.Argument(metavar="NAME", help="tiny, small or paper.", autocompletion=completion.experiments)
    ],
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and problems; the table says so.")] = False,
    only: Annotated[
        str | None, typer.Option("--only", metavar="ROWS", help="These rows, and the tutors they need: sft,opd-sft.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="ROW", help="First row; earlier ones must exist.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="ROW", help="Last row.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train, distil, evaluate and compare every model of an experiment. Finished parts are kept."""
    from onpol_cli.stages.reproduce import ReproduceRequest, run_reproduction

    run_reproduction(ReproduceRequest(experiment, overrides or [], quick, only, start, until, dry_run, as_json))


@app.command("sweep", epilog='Example: onpol sweep "distill student" tutor=latest:sft,latest:rl seed=1,2')
def sweep(
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="'train tutor' or 'distill student', in quotes.")],
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a command over lists of values through Hydra's multirun, then compare the results."""
    from onpol_cli.stages.sweep import run_sweep

    run_sweep(command, overrides or [], dry_run=dry_run, as_json=as_json)


@app.command("replay", epilog="Example: onpol replay RUN method=opd-exact tutor=latest:sft")
def replay(run: RunName, overrides: Overrides = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Recompute losses and gradient norms of saved rollouts (rollout.save=true) under another method."""
    from onpol_cli.stages.replay import run_replay

    run_replay(run, overrides or [], dry_run=dry_run, as_json=as_json)


@app.command("doctor", epilog="Example: onpol doctor --plan experiment=paper")
def doctor(
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Estimate the memory per GPU instead, of every row.")] = False,
    gpu_gib: Annotated[
        float | None, typer.Option("--gpu-gib", metavar="GIB", min=1, help="GPU to plan for; default: this machine's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what can run here and what is missing. Exit 1 if the named experiment cannot run."""
    from onpol_cli.stages.doctor import run_doctor

    run_doctor(overrides or [], plan=plan, as_json=as_json, gpu_gib=gpu_gib)


@data.command("list", epilog="Example: onpol data list --json")
def data_list(as_json: Json = False) -> None:
    """Name the benches, their licence, size and origin."""
    from onpol_cli.stages.data import list_data

    list_data(as_json=as_json)


@data.command(
    "prepare",
    epilog="Example: onpol data prepare minimal-edit --source leetcode --data FILE --families in-domain --out F.jsonl",
)
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="minimal-edit.")],
    source: Annotated[
        str, typer.Option("--source", metavar="POOL", help="leetcode, bigcodebench, mbpp, PATH or hub:NAME.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="New file, .jsonl or .parquet.")],
    data_file: Data = None,
    families: Annotated[
        str, typer.Option("--families", metavar="NAMES", help="in-domain, out-of-domain, all, or a comma list.")
    ] = "out-of-domain",
    max_corruptions: Annotated[
        int,
        typer.Option("--max-corruptions", min=1, help="Most edits in one program: as many as apply, up to this many."),
    ] = 20,
    per_problem: Annotated[
        int, typer.Option("--per-problem", min=1, help="Most corrupted programs kept of one source problem.")
    ] = 1,
    limit: Annotated[int, typer.Option("--limit", help="Source problems to use (0: all).")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of corruptions.")] = 0,
    exclude: Annotated[
        str | None, typer.Option("--exclude", metavar="FILE", help="LiveCodeBench file whose problems are left out.")
    ] = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Corrupt the reference solutions of a pool into a Minimal Code Edit data set."""
    from onpol_cli.stages.data import PrepareRequest, prepare_data

    prepare_data(
        PrepareRequest(
            name, source, out, data_file, families, max_corruptions, per_problem, limit, seed, exclude, resume, as_json
        )
    )


@data.command("verify", epilog="Example: onpol data verify my-edits.jsonl --json")
def data_verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Minimal Code Edit data set.")], as_json: Json = False
) -> None:
    """Run originals and corrupted programs; report what passes here and list the usable problems."""
    from onpol_cli.stages.data import verify_data

    verify_data(file, as_json=as_json)


@runs.command("list", epilog="Example: onpol runs list --json")
def runs_list(runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """List run directories, oldest first."""
    from onpol_cli.stages.runs import list_all

    list_all(runs_dir, as_json=as_json)


@runs.command("show", epilog="Example: onpol runs show latest:sft")
def runs_show(run: RunName, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Show a run: provenance, last metrics, budget."""
    from onpol_cli.stages.runs import show_run

    show_run(run, runs_dir, as_json=as_json)


@runs.command("watch", epilog="Example: onpol runs watch distill-opd")
def runs_watch(
    run: RunName,
    runs_dir: RunsDir = None,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and leave.")] = False,
    as_json: Json = False,
) -> None:
    """Follow a run from another terminal."""
    from onpol_cli.stages.runs import watch_run

    watch_run(run, runs_dir, once=once, as_json=as_json)


@runs.command("prune", epilog="Example: onpol runs prune --states --yes")
def runs_prune(
    runs_dir: RunsDir = None,
    states: Annotated[bool, typer.Option("--states", help="Only the resumable states of finished runs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Delete failed, interrupted and died runs, or the states of finished ones."""
    from onpol_cli.stages.runs import prune_runs

    prune_runs(runs_dir, states_only=states, really=yes, as_json=as_json)


@bench.command("estimators", epilog="Example: onpol bench estimators tutor=latest:sft")
def bench_estimators(overrides: Overrides = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Compare distillation signals on one frozen batch: gradient cosine, variance, memory, time."""
    from onpol_cli.stages.estimators import run_estimators

    run_estimators(overrides or [], dry_run=dry_run, as_json=as_json)


def main() -> None:
    """Entry point of the `onpol` command."""
    from onpol_cli.learner.leaving import leave_when_left
    from onpol_cli.learner.parallel import end_process, under_torchrun
    from onpol_cli.process import run

    if under_torchrun():
        leave_when_left()
    status = run(app, sys.argv[1:])
    if under_torchrun():
        end_process(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
