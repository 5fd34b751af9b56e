"""`onpol replay RUN method=...`: saved rollouts under another method or tutor, offline.

Owns which policy stands for each step and the table; the loss is the learner's, the signal the method's.
Nothing is sampled and nothing is stepped, so a laptop can ask what OPD would have said of an RL run.

The policy of a step is exact where the run kept its state (`run.save_every=1 run.keep_last=STEPS`);
elsewhere the run's starting weights stand in, and `ratio/mean` and `kl/mismatch` say how far off they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config
from onpol_cli.core.console import say, show, show_json
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.runs.lookup import RunInfo, find_run
from onpol_cli.stages import build
from onpol_cli.stages.gradients import gradient
from onpol_cli.stages.rollout_log import read_steps, tokens
from onpol_cli.stages.session import label, runs_root

if TYPE_CHECKING:
    from rich.table import Table

    from onpol_cli.learner.learner import Learner
    from onpol_cli.methods.base import Group, Method

FREE = ("run.name", "hydra.", "paths.", "parallel")
"""Words of the run's command that say nothing of its losses; a replay is one process."""
SHOWN = ("loss/total", "grad_norm", "kl/teacher", "kl/mismatch", "ratio/mean", "ratio/masked_share", "entropy")


def run_replay(name: str, overrides: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Recompute and show.

    Raises:
        OnpolError: the run saved no rollouts, or method and tutor do not fit.
    """
    info = find_run(name, runs_root(compose(overrides)))
    config = compose(words_of(info, overrides))
    rows = [] if dry_run else replay(info, config)
    if dry_run:
        steps = read_steps(info.path, {})
        return show_json({"run": info.name, "method": config.method.variant, "steps": len(steps), "dry_run": True})
    if as_json:
        return show_json({"run": info.name, "method": config.method.variant, "tutor": config.tutor, "steps": rows})
    return show(replay_table(info, config, rows))


def words_of(info: RunInfo, overrides: Sequence[str]) -> list[str]:
    """The overrides that the run was made with, changed by `overrides`."""
    new = {word.lstrip("+").partition("=")[0] for word in overrides}
    old = [word for word in info.manifest.get("command", []) if "=" in word and not word.startswith(("-", *FREE))]
    return [*(word for word in old if word.lstrip("+").partition("=")[0] not in new), *overrides]


def replay(info: RunInfo, config: Config) -> list[dict[str, Any]]:
    """One row of metrics per saved step."""
    method, learner, problems = prepare(config)
    steps = read_steps(info.path, problems)
    start = {name: value.clone() for name, value in learner.model.state_dict().items()}
    rows = []
    for step, groups in steps.items():
        origin = load_policy(learner, info.path / "state", step, start)
        rows.append({"step": step, "policy": origin, **measure(method, learner, groups)})
        say(f"step {step}: {len(groups)} groups, policy {origin}")
    return rows


def measure(method: Method, learner: Learner, groups: Sequence[Group]) -> dict[str, Any]:
    """Loss components, gradient norm and signal statistics of one step's rollouts."""
    try:
        chosen = method.select(groups) if method.prepares else list(groups)
    except RunFailed:  # training would have selected from more than one step
        chosen = []
    if not chosen:
        return {"rollouts": 0}
    metrics, vector = gradient(learner, method.examples(chosen))
    return {"rollouts": sum(map(len, chosen)), "tokens": tokens(chosen), "grad_norm": float(vector.norm()), **metrics}


def prepare(config: Config) -> tuple[Method, Learner, Mapping[str, Any]]:
    """Method, learner and problems by id, on the CPU unless the configuration says otherwise."""
    from onpol_cli.methods.base import Context
    from onpol_cli.methods.registry import build_method, check_method
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.stages.train import find_tutors, make_models
    from onpol_cli.tasks.registry import build_task

    check_method(config.method)
    policy = build.policy_config(config)
    tokenizer, chat = build.tokenizer_and_chat(policy.path)
    tutors = find_tutors(config, config.method.needs_tutor)
    build.verify_all(config, tutors)
    learner, teachers, reference = make_models(
        config, tokenizer, 1, tutors, lambda tutor, _: build.load_teacher(tutor, config, policy.path)
    )
    # Nothing is graded: the sandbox starts no worker unless it is given a job.
    task = build_task(replace(config.task), Sandbox(config.sandbox))
    problems = {problem.problem_id: problem for problem in task.problems("train")}
    frozen = reference.logprobs if reference is not None else None
    teacher_engine = learner.engine.at(config.method.teacher_temperature)
    context = Context(task, chat.prompt_ids, teachers, frozen, teacher_engine)
    return build_method(config.method, context), learner, problems


def load_policy(learner: Learner, state: Path, step: int, start: Mapping[str, Any]) -> str:
    """Give the learner the weights that sampled `step`, if the run kept them; says which ones it has now."""
    import torch

    from onpol_cli.runs.checkpoint import STATE, step_folder, verify

    folder = step_folder(state, step)
    if step == 0 or not folder.is_dir():
        learner.model.load_state_dict(start)
        return "exact" if step == 0 else "start"
    verify(folder, [STATE])
    weights = torch.load(folder / STATE, map_location="cpu", weights_only=True)["weights"]
    own = dict(learner.model.named_parameters())
    if weights.keys() - own.keys():
        raise OnpolError(f"{folder} holds weights of another model than model.path={learner.config.model.path}.")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return "exact"


def replay_table(info: RunInfo, config: Config, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a step."""
    from rich.table import Table

    table = Table(title=f"{info.name} under {label(config)}", title_justify="left")
    names = [name for name in SHOWN if any(name in row for row in rows)]
    for column in ("step", "policy", "rollouts", "tokens", *names):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        counts = [str(row["step"]), row["policy"], str(row["rollouts"]), str(row.get("tokens", "-"))]
        table.add_row(*counts, *(f"{row[name]:.4g}" if name in row else "-" for name in names))
    return table
