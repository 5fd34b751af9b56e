"""From words to a typed configuration: values arrive, mistakes get one line with the remedy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from onpol_cli.core.choices import experiment_choices, leaves, read
from onpol_cli.core.compose import as_dict, compose, from_yaml, to_yaml
from onpol_cli.core.config import (
    Config,
    Engine,
    EvalConfig,
    LearnerConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RolloutConfig,
    SamplingConfig,
)
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.overrides import check_overrides, split_values
from onpol_cli.core.settings import conf_dir, groups, inside_mapping, keys, nearest


def message(*words: str) -> str:
    """What `compose` says of mistaken words."""
    with pytest.raises(OnpolError) as caught:
        compose(words)
    return str(caught.value)


def test_values_and_choices_arrive_typed() -> None:
    config = compose(["seed=3", "rollout=vllm", "optim.lr=1e-5", "eval.benches=[humaneval,mbpp]", "method=rl"])
    assert (config.seed, config.optim.lr, config.method.name) == (3, 1e-5, "rl")
    assert config.eval.benches == ["humaneval", "mbpp"]


def test_the_experiment_beats_the_groups_and_the_command_line_beats_the_experiment() -> None:
    assert compose(["experiment=tiny"]).model.max_context == 512
    assert compose(["experiment=tiny", "model.max_context=640"]).model.max_context == 640


def test_vllm_reserves_for_the_models_context_unless_told_otherwise() -> None:
    assert compose(["experiment=paper"]).rollout.max_context == 8192
    assert compose(["model.max_context=640"]).rollout.max_context == 640
    assert compose(["model.max_context=640", "rollout.max_context=600"]).rollout.max_context == 600
    assert from_yaml(to_yaml(compose(["rollout.max_context=600"]))).rollout.max_context == 600


def test_a_recipe_belongs_to_its_experiment() -> None:
    assert compose(["experiment=tiny", "method=rl"]).method.prompts == 16
    assert compose(["experiment=none", "method=rl"]).method.prompts == 32


def test_yaml_round_trip_is_exact() -> None:
    config = compose(["method=opd", "eval.data.humaneval=/data/h.jsonl", "tutor=latest:sft"])
    assert from_yaml(to_yaml(config)) == config


def test_yaml_of_another_version_is_refused() -> None:
    with pytest.raises(OnpolError, match=r"does not fit this version of onpol.*nonsense"):
        from_yaml("nonsense: 1\n")


def test_plain_data_has_values_of_enums() -> None:
    assert as_dict(Config())["rollout"]["engine"] == Engine.hf.value


def test_entries_of_free_mappings_need_no_plus() -> None:
    config = compose(["eval.data.humaneval=/data/h.jsonl", "method.tutors.tiny-edit=latest:sft"])
    assert config.eval.data == {"humaneval": "/data/h.jsonl"} and config.method.tutors == {"tiny-edit": "latest:sft"}


MISTAKES = {
    ("mehtod=rl",): "Unknown setting 'mehtod'. Did you mean: method",
    ("lr=1e-6",): "Unknown setting 'lr'. Did you mean: optim.lr?",
    ("optim.lrr=1",): "Unknown setting 'optim.lrr'. Did you mean: optim.lr",
    ("+foo=1",): "Unknown setting 'foo'.",
    ("seed", "1"): "Override 'seed' has no '='. Did you mean seed=1?",
    ("seed", "=", "1"): "'seed = 1': no spaces around '='.",
    ("seed",): "Override 'seed' has no '='. Write key=value, for example seed=1 or method=rl.",
    ("~seed",): "'~seed' would delete a setting",
    ("seed=1,2",): "'seed=1,2' lists several values. To run each: onpol sweep",
    ("seed=abc",): "seed=abc is not a whole number.",
    ("optim.lr=",): "optim.lr= has no value; it wants a number.",
    ("optim.lr=-1",): "optim.lr must be >= 0, got -1.0.",
    ("method.topk=0",): "method.topk must be >= 1, got 0.",
    ("rollout.max_off_policy_steps=5",): "rollout.max_off_policy_steps must be 0 or 1 (one batch ahead), got 5.",
    ("method=opdd",): "No method named 'opdd'. Did you mean method=opd? Choices:",
    ("method=RL",): "No method named 'RL'. Did you mean method=rl? Choices:",
    ("rollout.engine=vlm",): "rollout.engine=vlm is none of: hf, vllm, vllm_server. Did you mean rollout.engine=vllm?",
    (
        "rollout.sampling=1",
    ): "'rollout.sampling' is a group of settings, not a value. Set one of: rollout.",
    ("run.loggers=wandb",): "run.loggers takes a list in brackets: run.loggers=[VALUE,...].",
    ("eval.problems=null",): "eval.problems cannot be null; leave it out for its default.",
    ("eval.data=x",): "eval.data takes named entries: eval.data.NAME=VALUE.",
    ("eval.benches=[a,b",): "Override 'eval.benches=[a,b' cannot be read.",
    ("hydra/launcher=jolib",): "No hydra/launcher named 'jolib' here. Launchers: basic, joblib",
}


NONSENSE = {
    LoraConfig: ("rank=-1", "alpha=-1", "dropout=1"),
    ModelConfig: ("max_context=0",),
    MethodConfig: (
        *("batch=0", "prompts=0", "group=0", "topk=0", "keep=0", "steps=-1", "epochs=-1", "adv_coef=-1"),
        *("teacher_coef=-1", "signal_clip=-1", "dpo_beta=0", "teacher_temperature=0", "beta=1.5", "lam=-0.5"),
        *("ratio_low=-0.5", "ratio_low=2", "ratio_high=0.5", "sequence_ratio_low=2", "sequence_ratio_high=0.5"),
        "sequence_ratio_max=0.5",
    ),
    SamplingConfig: (
        *("temperature=-1", "top_p=0", "top_p=1.5", "top_k=-2", "min_p=-0.5", "min_p=1.5", "repetition_penalty=0"),
        "max_new_tokens=0",
    ),
    RolloutConfig: (
        *("max_off_policy_steps=2", "max_off_policy_steps=-1", "max_batch=0", "tensor_parallel=0", "max_lora_rank=0"),
        *("local_servers=0", "concurrency=0", "max_context=-1", "retries=-1", "canary_tolerance=-1", "gpu_memory=0"),
        *("gpu_memory=1.5", "timeout_s=0"),
    ),
    LearnerConfig: ("micro_tokens=0", "chunk=0", "threads=-1"),
    OptimConfig: (
        *("lr=-1", "matrix_lr=-1", "weight_decay=-1", "clip=-1", "warmup=1.5", "decay=-0.5", "decay=1.5", "final=-0.5"),
        *("final=1.5", "beta1=1", "beta2=1", "beta2=-0.5", "eps=0"),
    ),
    ParallelConfig: ("nproc=0", "nnodes=-1", "timeout_minutes=0"),
    EvalConfig: ("samples=0", "max_new_tokens=0"),
}
"""Values that a setting's type allows and that would train or sample on nothing, or on something else than is said."""


@pytest.mark.parametrize(("kind", "word"), [(kind, word) for kind, words in NONSENSE.items() for word in words])
@pytest.mark.parametrize("nan", [False, True])
def test_values_out_of_range_are_refused_by_name(kind: type, word: str, nan: bool) -> None:
    name, _, text = word.partition("=")
    value = math.nan if nan else float(text)
    with pytest.raises(OnpolError, match=f"{name.removesuffix('_low').removesuffix('_high')}.* got .*{value:g}"):
        kind(**{name: int(value) if not nan and value.is_integer() else value})


def test_evaluations_at_no_temperature_are_refused() -> None:
    assert message("eval.temperatures=[]") == "eval.temperatures is empty: nothing would be evaluated."


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_gets_one_line_with_the_remedy(words: tuple[str, ...]) -> None:
    said = message(*words)
    assert said.startswith(MISTAKES[words]) and "\n" not in said


def test_a_sweep_may_list_values_but_not_wrong_ones() -> None:
    check_overrides(["seed=1,2", "method=rl,opd", "hydra/launcher=joblib", "method=choice(rl,opd)"], sweep=True)
    with pytest.raises(OnpolError, match="No method named 'opdd'"):
        check_overrides(["method=rl,opdd"], sweep=True)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("1", ["1"]),
        ("1,2", ["1", "2"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("{a:1,b:2}", ["{a:1,b:2}"]),
        ("choice(1,2)", ["choice(1,2)"]),
        ("latest:sft,latest:rl", ["latest:sft", "latest:rl"]),
    ],
)
def test_values_are_cut_at_outer_commas(value: str, parts: list[str]) -> None:
    assert split_values(value) == parts


def test_every_setting_has_a_dotted_name() -> None:
    assert {"seed", "optim.lr", "model.lora.rank", "rollout.sampling.top_p"} <= set(keys())


def test_groups_are_the_folders_of_conf() -> None:
    assert set(groups()["rollout"]) == {path.stem for path in (conf_dir() / "rollout").glob("*.yaml")}


def test_nearest_finds_the_last_part_and_the_misspelt() -> None:
    assert nearest("lr", keys())[0] == "optim.lr"
    assert "rollout.engine" in nearest("rollout.engin", keys())
    assert nearest("zzzzqqqq", keys()) == []


def test_only_free_mappings_take_new_names() -> None:
    assert inside_mapping("eval.data.mine") and not inside_mapping("eval.data") and not inside_mapping("eval.mine.x")


def test_a_composition_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose(["method=rl"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("experiment", ["tiny", "small", "paper", "base", "small-base"])
@pytest.mark.parametrize(
    "word", ["learner=gpu", "optim=muon", "task=minimal-edit", "model=tiny", "rollout=vllm_server"]
)
def test_a_group_named_on_the_command_line_is_not_beaten_by_the_experiment(experiment: str, word: str) -> None:
    group, choice = word.split("=")
    composed = as_dict(compose([f"experiment={experiment}", word]))
    if experiment_choices(experiment)[group] == choice:
        assert composed == as_dict(compose([f"experiment={experiment}"])), "the experiment's own choice, said again"
        return
    for key, value in leaves(read(Path(group) / choice)).items():
        assert str(composed[group][key]) == str(value), key


def test_a_value_on_the_command_line_and_debug_have_the_last_say() -> None:
    assert compose(["learner=gpu"]).learner.autocast == "bfloat16"
    assert compose(["learner=gpu", "learner.autocast=float32"]).learner.autocast == "float32"
    assert compose(["learner.autocast=float32", "learner=gpu"]).learner.gradient_checkpointing
    assert compose(["task=minimal-edit", "debug=short"]).task.problems == 16
    assert compose(["task=minimal-edit"]).task.problems == 0
