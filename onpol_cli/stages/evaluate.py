"""`onpol eval`: a model on benches, or answers from elsewhere on benches.

Owns options -> tasks -> run directory -> lines -> summary -> table or JSON. Grading and sampling are
`evaluation`'s; the comparison of several evaluations is `stages.compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from onpol_cli.core.compose import as_dict, compose, to_yaml
from onpol_cli.core.config import Config, SamplingConfig
from onpol_cli.core.console import say, show, show_json, show_text
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import sha256_file, write_json
from onpol_cli.runs.lookup import RunInfo
from onpol_cli.runs.rundir import SAMPLES, RunDir, read_lines, read_manifest
from onpol_cli.stages import build
from onpol_cli.stages.eval_table import bench_summary, summary_table
from onpol_cli.stages.session import differing, open_run, time_stamp

if TYPE_CHECKING:
    from onpol_cli.core.types import Problem
    from onpol_cli.evaluation.records import Row
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.tasks.protocol import Task

PROBLEMS = "problems.jsonl"
SUMMARY = "summary.json"
KL = "kl.json"
UPDATE = "update.json"


@dataclass
class EvalRequest:
    """What the command line asked for."""

    benches: Sequence[str]
    overrides: Sequence[str] = ()
    model: str | None = None
    answers: Path | None = None
    data: str | None = None
    run_dir: Path | None = None
    as_json: bool = False
    resume: bool = False
    dry_run: bool = False
    partial: bool = False
    filters: dict[str, str | None] = field(default_factory=dict)

    def command(self) -> list[str]:
        """The words that repeat it."""
        words = ["onpol", "eval", *(w for name in self.benches for w in ("--bench", name)), *self.overrides]
        for option, value in (("--model", self.model), ("--answers", self.answers), ("--data", self.data)):
            words += [option, str(value)] if value is not None else []
        for name, text in self.filters.items():
            words += [f"--{name.replace('_', '-')}", text] if text else []
        return words + (["--partial"] if self.partial else [])


def run_evaluation(request: EvalRequest) -> None:
    """Compose, evaluate, show."""
    if request.model is not None and request.answers is not None:
        raise OnpolError("Give --model or --answers, not both.")
    config = compose(request.overrides)
    config.eval.benches = list(dict.fromkeys(request.benches))
    if request.data is not None:
        if len(config.eval.benches) != 1:
            raise OnpolError("--data names one file: give exactly one --bench with it, or eval.data.NAME=FILE.")
        config.eval.data[config.eval.benches[0]] = request.data
    if request.dry_run:
        return dry(request, config)
    path, result = evaluate(config, request)
    if request.as_json:
        show_json(result)
        return None
    show(summary_table(result))
    say(f"Records: {path / SAMPLES}")
    return None


def dry(request: EvalRequest, config: Config) -> None:
    """Check benches, data and model without running anything."""
    from onpol_cli.sandbox import Sandbox

    with Sandbox(config.sandbox, _preload(config)) as sandbox:
        counts = {task.name: len(_limited(task.problems("test"), config)) for task in _tasks(config, request, sandbox)}
    if request.answers is None and not config.model.random_weights:
        build.find_checkpoint(request.model or config.model.path, config, fetch=False)
    if request.as_json:
        show_json({"command": request.command(), "config": as_dict(config), "problems": counts, "dry_run": True})
    else:
        show_text("\n".join(f"# {name}: {count} problems" for name, count in counts.items()) + "\n" + to_yaml(config))


def evaluate(config: Config, request: EvalRequest) -> tuple[Path, dict[str, Any]]:
    """Evaluate as `request` says; returns the run directory and the object that --json prints.

    Raises:
        OnpolError: a bench, data file, answer or model that cannot be used; nothing was written.
    """
    from onpol_cli.evaluation.answers_eval import plan_answers
    from onpol_cli.sandbox import Sandbox

    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(config.sandbox, _preload(config)))
        tasks = _tasks(config, request, sandbox)
        if request.answers is not None:
            plan = plan_answers(tasks, request.answers, partial=request.partial)
            source: Any = plan
            label = request.answers.stem
            facts: dict[str, Any] = {"answers": str(request.answers)}
        else:
            source = build.find_checkpoint(request.model or config.model.path, config)
            build.verify_checkpoint(source)
            if config.eval.kl:
                build.verify_checkpoint(build.find_checkpoint(config.model.path, config))  # what distances start from
            for task in tasks:
                task.problems("test")
            label, facts = source.label, model_facts(source, config)
        facts |= {"eval_settings": settings(config, request), "label": label, "isolation": sandbox.isolation}
        facts["hashes"] = _hashes(tasks, source, request, config)
        name = f"eval-{_slug(label, source)}-s{config.seed}-{time_stamp()}"
        resume = request.resume or may_go_on(request, config, facts)
        run = stack.enter_context(
            open_run(config, name, request.command(), resume=resume, folder=request.run_dir, **facts)
        )
        if note_originals(tasks, config) and request.answers is not None:
            source = plan_answers(tasks, request.answers, partial=request.partial)  # with what is known now
        write_problems(run, tasks, config)
        benches = (
            _grade_answers(run, source, request)
            if request.answers is not None
            else _sample_model(run, config, tasks, source, sandbox)
        )
        write_json(run.path / SUMMARY, benches)
        return run.path, {"run": run.name, "benches": benches}


@runtime_checkable
class HasOriginals(Protocol):
    """A bench whose originals may fail here, for want of a module, say."""

    def unknown_originals(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those of which nobody has tried yet whether the original passes in this environment."""
        ...

    def run_originals(self, problems: Sequence[Problem], progress: Callable[[int, int], None]) -> None:
        """Try them."""
        ...


def note_originals(tasks: Sequence[Task], config: Config) -> bool:
    """Find out which originals pass here, for benches that need it; says so first. True if any were run."""
    ran = False
    for task in tasks if config.eval.originals else ():
        todo = task.unknown_originals(_limited(task.problems("test"), config)) if isinstance(task, HasOriginals) else []
        if todo and isinstance(task, HasOriginals):
            say(
                f"{task.name}: running {len(todo)} originals first, to score apart the problems whose original passes "
                "here; kept for later evaluations (eval.originals=false leaves it out)"
            )
            task.run_originals(todo, _progress(f"{task.name} originals"))
            ran = True
    return ran


def may_go_on(request: EvalRequest, config: Config, facts: Mapping[str, Any]) -> bool:
    """Whether --run-dir holds an unfinished grading that this same command left: it then goes on without --resume.

    Raises:
        OnpolError: it holds a grading that is finished, or one of other answers, problems or settings.
    """
    folder = request.run_dir
    manifest = read_manifest(folder) if request.answers is not None and folder is not None else {}
    if folder is None or not manifest:
        return False
    old = RunInfo(folder, manifest)
    if old.status == "done":
        raise OnpolError(f"--run-dir {folder} holds a finished run. Choose another folder, or remove this one.")
    other = [words for name, words in _SAME.items() if old.manifest.get(name) != facts[name]]
    other += differing(old, config)
    if other:
        listed = ", ".join(other[:5])
        raise OnpolError(f"--run-dir {folder} holds an unfinished run that differs in {listed}. Choose another folder.")
    return True


_SAME = {"hashes": "answers or problems", "eval_settings": "evaluation settings"}
"""Parts of a manifest that an unfinished grading and the command that goes on with it have in common."""


def _hashes(tasks: Sequence[Task], source: Any, request: EvalRequest, config: Config) -> dict[str, Any]:
    """What was evaluated on what: manifest entries that identify problems, model and answers."""
    data = {task.name: problems_hash(task, config) for task in tasks}
    found: dict[str, Any] = {"data": data, "model": _model_hash(source)}
    return found if request.answers is None else {**found, "answers": sha256_file(request.answers)}


def _tasks(config: Config, request: EvalRequest, sandbox: Any) -> list[Task]:
    from onpol_cli.tasks.livecodebench.releases import Filters
    from onpol_cli.tasks.registry import build_task

    filters = Filters(**{name: value for name, value in request.filters.items() if value})
    return [build_task(build.bench_task(config, name), sandbox, filters) for name in config.eval.benches]


def _preload(config: Config) -> list[str]:
    from onpol_cli.tasks.registry import preload_for

    return preload_for(config.eval.benches)


def _limited(problems: Sequence[Any], config: Config) -> Sequence[Any]:
    return problems[: config.eval.problems or None]


def _slug(label: str, source: Any) -> str:
    if isinstance(source, build.Checkpoint) and source.name is not None:
        return source.name
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label)


def _model_hash(source: Any) -> str | None:
    return build.model_hash(source.path) if isinstance(source, build.Checkpoint) else None


def model_facts(checkpoint: build.Checkpoint, config: Config) -> dict[str, Any]:
    """What an evaluation's manifest says of the evaluated model."""
    return {
        "model_role": "evaluation",
        "tutor_label": checkpoint.fact("tutor_label"),
        "evaluates": {
            "run": checkpoint.run.name if checkpoint.run else None,
            "path": checkpoint.origin,
            **checkpoint.hub_facts,
            "label": checkpoint.label,
            "method": "base" if _is_base(checkpoint, config) else checkpoint.fact("method"),
            "method_choice": checkpoint.fact("method_choice"),
            "tutor_label": checkpoint.fact("tutor_label"),
            "seed": checkpoint.fact("seed", config.seed),
            "step": build.steps_behind(Path(checkpoint.path), checkpoint.run) if checkpoint.run else None,
            "train_run_dir": str(checkpoint.run.path) if checkpoint.run else None,
        },
    }


def _is_base(checkpoint: build.Checkpoint, config: Config) -> bool:
    """Whether this is what training starts from: `model.path`, unless that is a run's."""
    if checkpoint.run is not None:
        return False
    return checkpoint.origin == build.find_checkpoint(config.model.path, config, fetch=False).origin


def settings(config: Config, request: EvalRequest) -> dict[str, Any]:
    """Everything in which two comparable evaluations must agree."""
    chosen = as_dict(config)["eval"]
    chosen.pop("data")
    chosen.pop("benches")
    return {**chosen, "filters": {k: v for k, v in request.filters.items() if v}, "world_seed": config.task.world_seed}


def problems_hash(task: Task, config: Config) -> str:
    """Hash of the evaluated problems: ids and corrupted code, in order."""
    from onpol_cli.core.files import sha256_text

    rows = (f"{p.problem_id}\0{p.corrupted or p.statement}" for p in _limited(task.problems("test"), config))
    return sha256_text("\1".join(rows))[:16]


def write_problems(run: RunDir, tasks: Sequence[Task], config: Config) -> None:
    """problems.jsonl: what the report's browser shows beside the answers."""
    from onpol_cli.evaluation.records import problem_row

    if (run.path / PROBLEMS).is_file():
        return
    for task in tasks:
        run.append(PROBLEMS, [problem_row(task.name, p) for p in _limited(task.problems("test"), config)])


def _grade_answers(run: RunDir, plan: Any, request: EvalRequest) -> dict[str, Any]:
    from onpol_cli.evaluation.answers_eval import evaluate_answers

    try:
        return evaluate_answers(
            plan, run.path / SAMPLES, lambda rows: run.append(SAMPLES, rows), on_progress=_progress(run.name)
        )
    except KeyboardInterrupt:
        kept = sum(1 for _ in read_lines(run.path / SAMPLES))
        again = "with --resume" if request.run_dir is None else "to go on"
        raise KeyboardInterrupt(
            f"Interrupted. {kept} graded answers are kept in {run.path}; repeat the command {again}."
        ) from None


def _progress(name: str) -> Any:
    """Plain progress lines on stderr, at most one every ten seconds."""
    import time

    last = [time.perf_counter()]

    def tell(done: int, total: int) -> None:
        if time.perf_counter() - last[0] > 10:
            last[0] = time.perf_counter()
            say(f"{name}: {done}/{total} graded")

    return tell


def _sample_model(
    run: RunDir, config: Config, tasks: Sequence[Task], checkpoint: build.Checkpoint, sandbox: Sandbox
) -> dict[str, Any]:
    from onpol_cli.evaluation.model_eval import evaluate_bench
    from onpol_cli.evaluation.records import read_done

    tokenizer, chat = build.tokenizer_and_chat(checkpoint.path)
    config.rollout.sampling = replace(config.rollout.sampling, max_new_tokens=config.eval.max_new_tokens)
    done = read_done(run.path / SAMPLES)
    lines: dict[str, dict[float, list[Row]]] = {}
    with build.engine_for(config, checkpoint.path, tokenizer) as engine:
        for task in tasks:
            problems = build.encoded(task, chat, _limited(task.problems("test"), config), config)
            for temperature in config.eval.temperatures:
                sampling = sampling_at(config, temperature)
                lines.setdefault(task.name, {})[temperature] = evaluate_bench(
                    task,
                    problems,
                    lambda prompts, s=sampling: engine.generate(prompts, s),  # type: ignore[misc]
                    lambda rows: run.append(SAMPLES, rows),
                    temperature=temperature,
                    samples=config.eval.samples if temperature > 0 else 1,
                    seed=config.eval.seed + config.seed,
                    done=done,
                    on_progress=_progress(f"{run.name} {task.name} T={temperature:g}"),
                )
        if config.eval.kl and not (run.path / KL).is_file():
            from onpol_cli.stages.divergences import measure

            divergence, update = measure(config, tasks, chat, engine, checkpoint, sandbox)
            write_json(run.path / UPDATE, update)
            write_json(run.path / KL, divergence)
    return {task.name: bench_summary(_limited(task.problems("test"), config), lines[task.name]) for task in tasks}


def sampling_at(config: Config, temperature: float) -> SamplingConfig:
    """Plain sampling at `temperature`: nothing truncated, nothing penalised."""
    return SamplingConfig(temperature=temperature, max_new_tokens=config.eval.max_new_tokens)
