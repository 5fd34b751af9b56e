"""`onpol doctor`: each check finds what it is there for, with a remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config, Engine, RowConfig
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.learner import planner, shapes
from onpol_cli.rollout import vllm_env
from onpol_cli.stages import doctor_checks as checks
from onpol_cli.stages.doctor import examine, preflight, require_preflight, row_findings, run_doctor
from onpol_cli.stages.doctor_checks import Finding, Level
from onpol_cli.stages.doctor_memory import check_memory, check_precision
from onpol_cli.stages.doctor_rates import check_rates


@pytest.fixture
def config(policy_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """A configuration on the small model, with further overrides."""

    def make(*words: str) -> Config:
        base = ["experiment=none", f"paths.runs={tmp_path}", f"model.path={policy_folder}", "model.max_context=2048"]
        return compose([*base, *words])

    return make


def worst(findings: list[Finding]) -> Finding:
    """The gravest of several findings."""
    return max(findings, key=lambda finding: list(Level).index(finding.level))


def test_cuda_without_cuda_is_an_error(config: Callable[..., Config]) -> None:
    found = worst(checks.check_device(config("model.device=cuda")))
    assert found.level is (Level.ok if torch.cuda.is_available() else Level.error)
    assert checks.check_device(config("model.device=cpu"))[0].level is Level.ok


def test_an_engine_that_is_not_installed_matters_only_if_it_is_asked_for(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_env, "find_spec", lambda name: None)
    assert worst(checks.check_engines(config())).level is Level.ok
    found = worst(checks.check_engines(config("rollout=vllm")))
    assert found.level is Level.error and "pip install 'onpol[vllm]'" in found.remedy
    assert checks.engine_state(Engine.hf)[0]


def test_servers_of_an_old_vllm_are_refused_where_they_are_asked_for(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_env, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_env, "installed_version", lambda *names: "0.26.0")
    assert worst(checks.check_engines(config("rollout=vllm"))).level is Level.ok
    found = worst(checks.check_engines(config("rollout=vllm_server")))
    assert found.level is Level.error and "0.27 or newer is needed, 0.26.0 is installed" in found.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rollout.lora_sync=adapter", "model.lora.rank=4"), "rollout=hf merges"),
        (("rollout.lora_sync=adapter", "rollout=vllm"), "without an adapter"),
        (("rollout.lora_sync=adapter", "rollout=vllm", "model.lora.rank=99"), "beyond rollout.max_lora_rank=64"),
        (("rollout.weight_transfer=nccl", "rollout=vllm"), "needs rollout=vllm_server"),
        (
            ("rollout.weight_transfer=ipc", "rollout=vllm_server", "rollout.lora_sync=adapter", "model.lora.rank=4"),
            "moves whole weights",
        ),
        (("rollout.weight_transfer=nccl", "rollout=vllm_server", "parallel.nproc=2"), "of one learner process"),
    ],
)
def test_weights_that_cannot_reach_the_sampler(config: Callable[..., Config], words: tuple[str, ...], message: str):
    found = worst(checks.check_sync(config(*words)))
    assert found.level is Level.error and message in found.message and found.remedy
    assert found in preflight(config(*words), "tutor")


def test_adapters_and_whole_weights_are_fine(config: Callable[..., Config]) -> None:
    assert worst(checks.check_sync(config("model.lora.rank=4"))).level is Level.ok
    words = ("rollout=vllm", "rollout.lora_sync=adapter", "model.lora.rank=4")
    assert worst(checks.check_sync(config(*words))).level is Level.ok


def test_a_transfer_between_gpus_needs_one(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onpol_cli.rollout.transfer.on_gpu", lambda: False)
    found = worst(checks.check_sync(config("rollout.weight_transfer=ipc", "rollout=vllm_server")))
    assert found.level is Level.error and "here is no GPU" in found.message


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("rollout=vllm_server",), ["rollout.servers"]),
        (("rollout=vllm_server", "rollout.servers=[http://node0:8000]"), []),
        (("method=opd", "tutor=tiny", "method.scorer=vllm_server"), ["rollout.teacher_servers"]),
        (("method=opd", "rollout=vllm"), []),
    ],
)
def test_servers_on_loopback_serve_one_host(config: Callable[..., Config], words: tuple[str, ...], wanted: list[str]):
    def found(*more: str) -> list[Finding]:
        return [finding for finding in checks.check_sync(config(*words, *more)) if finding.check == "servers"]

    far = found("parallel.nnodes=2", "parallel.rendezvous=node0:29400")
    assert [finding.remedy.split("set ")[1].split("=")[0] for finding in far] == wanted
    assert all(finding.level is Level.error and "parallel.nnodes=2" in finding.message for finding in far)
    assert found("parallel.nproc=2") == []


def test_servers_given_for_teachers_serve_one_tutor(config: Callable[..., Config]) -> None:
    words = ("method=multi_opd", "method.scorer=vllm_server", "rollout.teacher_servers=[http://a:1,http://b:1]")
    own = config(*words, "method.tutors.one=A", "method.tutors.two=B")
    (found,) = [finding for finding in preflight(own, "student") if finding.check == "servers"]
    assert found.level is Level.error and found in examine(own)
    assert "all serve one tutor, and method.tutors names 2" in found.message and "Leave it out" in found.remedy
    for harmless in ("rollout.teacher_servers=[]", "method.tutors.two=A", "method.scorer=learner"):
        allowed = config(*words, "method.tutors.one=A", "method.tutors.two=B", harmless)
        assert worst(checks.check_sync(allowed)).level is Level.ok


def test_the_sandbox_says_how_programs_are_isolated(config: Callable[..., Config]) -> None:
    (found,) = checks.check_isolation(config())
    assert found.level in (Level.ok, Level.warning) and found.message
    (strict,) = checks.check_isolation(config("sandbox=strict"))
    assert strict.level is (Level.ok if found.level is Level.ok else Level.error)


def test_too_little_space_is_an_error(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_disk(config())[0].level is Level.ok
    monkeypatch.setattr(checks, "weights_gb", lambda _: 1e6)
    (found,) = checks.check_disk(config())
    assert found.level is Level.error and "runs prune" in found.remedy


def test_the_space_wanted_counts_states_with_their_models_and_the_best(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "weights_gb", lambda _: 1.0)

    def wanted(*words: str) -> float:
        return float(checks.check_disk(config(*words))[0].message.split("about ")[1].split(" GB")[0])

    assert wanted() == 3 + 7, "checkpoint, and the state of an interruption"
    assert wanted("run.save_every=10", "run.keep_last=2") == 3 + 3 * 7
    assert wanted("run.validate_every=10") == 3 + 7 + 2
    assert wanted("run.validate_every=10", "run.keep_best=false") == 3 + 7


def test_a_file_in_the_place_of_the_runs_folder_is_an_error(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = checks.check_disk(config(f"paths.runs={tmp_path / 'file'}"))
    assert found.level is Level.error and "paths.runs=DIR" in found.remedy


def test_compiling_without_a_compiler_is_an_error(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.check_compile(config()) == []
    monkeypatch.setenv("CXX", sys.executable)
    assert checks.check_compile(config("learner.compile=true", "model.device=cpu"))[0].level is Level.ok
    monkeypatch.setenv("CXX", "/nowhere/g++")
    (found,) = checks.check_compile(config("learner.compile=true", "model.device=cpu"))
    assert found.level is Level.error and "learner.compile" in found.remedy


def test_liger_on_a_cpu_is_an_error(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert checks.check_liger(config()) == []
    for device in ("cpu", "cuda"):  # no GPU is seen: check_device says so, this check must not stop there
        (found,) = checks.check_liger(config("learner.liger=true", f"model.device={device}"))
        assert found.level is Level.error and "learner.liger=true" in found.message


def test_benches_say_where_their_data_are(config: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    file.write_text("{}")
    words = ["eval.benches=[tiny-codegen,humaneval,quixbugs]", f"eval.data.humaneval={file}"]
    found = {item.check: item for item in checks.check_benches(config(*words, "eval.data.quixbugs=/nowhere.jsonl"))}
    assert found["data of tiny-codegen"].level is Level.ok
    assert found["data of humaneval"].message == str(file)
    assert found["data of quixbugs"].level is Level.error and "then add --data" in found["data of quixbugs"].remedy


def test_data_that_are_nowhere_are_an_error_or_a_download(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONPOL_DATA", "/nowhere")
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    found = {item.check: item for item in checks.check_benches(config("eval.benches=[mbpp,humanevalfix]"))}
    assert found["data of mbpp"].level is Level.error
    assert found["data of humanevalfix"].level in (Level.warning, Level.ok)


def test_an_unknown_bench_is_an_error_with_the_nearest_name(config: Callable[..., Config]) -> None:
    found = worst(checks.check_benches(config("eval.benches=[humanval]")))
    assert found.level is Level.error and "humaneval" in found.message + found.remedy


def test_a_model_beyond_its_positions_is_an_error(config: Callable[..., Config]) -> None:
    assert checks.check_model(config())[0].level is Level.ok
    found = worst(checks.check_model(config("model.max_context=9000")))
    assert found.level is Level.error and found.remedy == "Use model.max_context=4096."


def test_a_model_without_a_chat_template_is_an_error(
    config: Callable[..., Config], policy_folder: Path, tmp_path: Path
) -> None:
    for file in policy_folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    found = worst(checks.check_model(config(f"model.path={tmp_path}")))
    assert found.level is Level.error and "has no chat template" in found.message


def test_no_room_for_a_prompt_is_an_error(config: Callable[..., Config]) -> None:
    (found,) = checks.check_context(config("rollout.sampling.max_new_tokens=4096"))
    assert found.level is Level.error and checks.check_context(config()) == []


@pytest.mark.parametrize("engine", ["vllm", "vllm_server"])
def test_no_room_in_what_vllm_reserves_is_an_error_too(config: Callable[..., Config], engine: str) -> None:
    words = ["rollout.max_context=1024", "rollout.sampling.max_new_tokens=1024"]
    (found,) = checks.check_context(config(f"rollout={engine}", *words))
    assert found.level is Level.error and found.remedy == "Lower it below rollout.max_context=1024, or raise that."
    assert found in preflight(config(f"rollout={engine}", "method=rl", *words), "tutor")
    assert checks.check_context(config(*words)) == [], "the embedded engine reserves nothing"


def test_prompts_that_vllm_has_no_room_for_are_warned_of(config: Callable[..., Config]) -> None:
    words = ["rollout=vllm", "rollout.sampling.max_new_tokens=100"]
    (found,) = checks.check_context(config(*words, "rollout.max_context=512"))
    assert found.level is Level.warning and "a prompt of more than 412 tokens would end the run" in found.message
    for enough in (config(*words, "rollout.max_context=4096"), config(*words)):
        assert checks.check_context(enough) == []


def test_evaluations_need_room_too_but_do_not_keep_a_run_from_training(config: Callable[..., Config]) -> None:
    own = config("eval.max_new_tokens=2048")
    (found,) = checks.check_eval_context(own)
    assert found.level is Level.error and found.remedy == "Lower it below model.max_context=2048, or raise that."
    assert found in examine(own) and found not in preflight(own, "tutor")


def test_a_tutor_with_the_same_tokens_fits(config: Callable[..., Config], teacher_folder: Path) -> None:
    (found,) = checks.check_tutors(config("method=opd", f"tutor={teacher_folder}"))
    assert found.level is Level.ok and "shares its tokens" in found.message


def test_a_tutor_with_other_tokens_is_an_error_that_names_them(
    config: Callable[..., Config], foreign_folder: Path
) -> None:
    (found,) = checks.check_tutors(config("method=opd", f"tutor={foreign_folder}"))
    assert found.level is Level.error and "chat templates differ" in found.message
    assert "vocabulary 258 (student) and 259 (teacher)" in found.message


def test_a_missing_tutor_is_an_error_and_a_method_without_teacher_needs_none(config: Callable[..., Config]) -> None:
    (found,) = checks.check_tutors(config("method=opd"))
    assert found.level is Level.error and "tutor=" in found.remedy + found.message
    assert checks.check_tutors(config("method=rl")) == []


SAMPLING = {
    (): Level.ok,
    ("rollout.sampling.top_p=0.9",): Level.error,
    ("rollout.sampling.top_k=0",): Level.ok,
    ("rollout.sampling.top_k=20",): Level.error,
    ("rollout.sampling.min_p=0.1",): Level.error,
    ("rollout.sampling.repetition_penalty=1.1",): Level.error,
    ("rollout.sampling.temperature=0",): Level.error,
    ("rollout.sampling.temperature=0.7",): Level.warning,
}


@pytest.mark.parametrize("words", SAMPLING, ids=lambda words: " ".join(words) or "plain")
def test_on_policy_methods_need_plain_sampling(config: Callable[..., Config], words: tuple[str, ...]) -> None:
    found = worst(checks.check_sampling(config("method=rl", *words)))
    assert found.level is SAMPLING[words] and (found.level is Level.ok or "rollout.sampling." in found.remedy)
    assert worst(checks.check_sampling(config("method=sft", *words))).level is Level.ok


def test_a_method_without_signal_is_an_error(config: Callable[..., Config]) -> None:
    (found,) = checks.check_sampling(config("method=opd", "method.teacher_coef=0"))
    assert found.level is Level.error and found.check == "method"


def test_rows_of_a_matrix_are_looked_at(config: Callable[..., Config]) -> None:
    words = ["experiment=tiny", "rollout.sampling.top_p=0.5"]
    rows = {finding.check for finding in row_findings(compose(words), words)}
    assert "row rl: sampling" in rows and "row sft: sampling" not in rows


def test_preflight_of_a_good_run_has_no_error_and_reads_no_weights(
    config: Callable[..., Config], policy_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in policy_folder.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    found = preflight(config("method=opd", f"model.path={bare}", f"tutor={bare}"), "student")
    assert [item for item in found if item.level is Level.error] == [] and len(found) >= 5


def test_a_failed_preflight_is_a_usage_error_with_its_remedy(config: Callable[..., Config]) -> None:
    require_preflight(config("method=rl"), "tutor")
    with pytest.raises(OnpolError, match=r"biases the importance ratio.*Set rollout\.sampling\.top_p=1\.0\.") as caught:
        require_preflight(config("method=rl", "rollout.sampling.top_p=0.9"), "tutor")
    assert not isinstance(caught.value, RunFailed)


def test_findings_are_not_repeated(config: Callable[..., Config]) -> None:
    found = examine(config())
    assert len(found) == len(set(found))


def test_json_and_exit_state(policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=none", f"paths.runs={tmp_path}", f"model.path={policy_folder}", "model.max_context=2048"]
    run_doctor([*words, "eval.benches=[tiny-codegen]"], plan=False, as_json=True)
    assert json.loads(capsys.readouterr().out)["ok"] is True
    with pytest.raises(RunFailed, match="This cannot run here: sampling: "):
        run_doctor([*words, "method=rl", "rollout.sampling.top_k=5"], plan=False, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is False and any(item["level"] == "error" for item in shown["findings"])


def test_the_table_shows_the_remedy(tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=none", f"paths.runs={tmp_path}", f"model.path={policy_folder}", "model.max_context=9000"]
    with pytest.raises(RunFailed):
        run_doctor(words, plan=False, as_json=False)
    assert "Use model.max_context=4096." in capsys.readouterr().out


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the hub's cache, and an error for whoever asks it."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(shapes, "_cached_folder", lambda name, revision: None)
    monkeypatch.setattr(shapes, "load_config", refuse)


def test_every_row_of_the_paper_is_planned_without_a_network(
    no_hub: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run_doctor(["experiment=paper"], plan=True, as_json=True, gpu_gib=139.0)
    shown = json.loads(capsys.readouterr().out)
    peaks = {row["row"]: row["peak"] for row in shown["rows"]}
    assert list(peaks) == ["sft", "rsft", "dpo", "rl", "opd-sft", "opd-rl"]
    assert shown["row"] == "opd-sft" and shown["peak"] == max(peaks.values()) > peaks["rl"] > 1.4 * peaks["sft"]
    assert shown["sizes"].startswith("published sizes of Qwen3-4B") and shown["parameters"] == 4_022_468_096


def test_rows_that_do_not_fit_are_named(no_hub: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed, match=r"80\.0 are there \(rows that do not fit: dpo, rl, opd-sft, opd-rl\)"):
        run_doctor(["experiment=paper"], plan=True, as_json=False, gpu_gib=80.0)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("rsft", "opd-rl", "does not fit"))
    with pytest.raises(OnpolError, match="use it with --plan"):
        run_doctor(["experiment=paper"], plan=False, as_json=False, gpu_gib=80.0)


def test_a_method_on_the_command_line_is_planned_alone(no_hub: None, capsys: pytest.CaptureFixture[str]) -> None:
    run_doctor(["experiment=paper", "method=rl"], plan=True, as_json=True, gpu_gib=139.0)
    shown = json.loads(capsys.readouterr().out)
    assert shown["method"] == "rl" and [row["method"] for row in shown["rows"]] == ["rl"]


def test_a_tutor_that_is_the_base_row_costs_no_second_model_under_adapters() -> None:
    from onpol_cli.stages.doctor_memory import plan_rows

    words = ["experiment=none", "model.lora.rank=4", "model.path=tiny"]
    own = compose(words)
    own.matrix.rows = [
        RowConfig("base", "base"), RowConfig("sft"),
        RowConfig("a", "distill student", "base", ["method=opd"]),
        RowConfig("b", "distill student", "sft", ["method=opd"]),
    ]  # fmt: skip
    plans = dict(plan_rows(own, words, 80.0))
    assert list(plans) == ["sft", "a", "b"]
    assert plans["a"].learner["frozen models"] == 0 < plans["b"].learner["frozen models"]


def test_the_preflight_warns_of_a_plan_beyond_the_gpu(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("method=rl", "learner.micro_tokens=64000")
    monkeypatch.setattr(planner, "gpu_gib", lambda: None)
    assert check_memory(config(*words)) == []
    monkeypatch.setattr(planner, "gpu_gib", lambda: 1.05)
    found = [finding for finding in preflight(config(*words), "tutor") if finding.check == "memory"]
    assert [finding.level for finding in found] == [Level.warning]
    assert "of 1.1 GiB planned for rl (does not fit)" in found[0].message and "learner." in found[0].remedy
    seen: list[str] = []
    monkeypatch.setattr("onpol_cli.stages.doctor.LOGGER.warning", lambda text, *args: seen.append(text % args))
    require_preflight(config(*words), "tutor")  # an estimate only warns
    assert any(text.startswith("memory: about ") for text in seen)
    assert check_memory(config(*words, "model.device=cpu")) == []
    monkeypatch.setattr(planner, "gpu_gib", lambda: 80.0)
    assert [finding.level for finding in check_memory(config(*words))] == [Level.ok]


def test_rows_beyond_the_gpu_are_found_by_doctor(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "gpu_gib", lambda: 80.0)
    words = ["experiment=paper"]
    found = [finding.check for finding in row_findings(compose(words), words)]
    assert found == ["row dpo: memory", "row rl: memory", "row opd-sft: memory", "row opd-rl: memory"]


def test_models_that_only_the_hub_knows_are_not_asked_for(
    config: Callable[..., Config], no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "gpu_gib", lambda: 8.0)
    assert check_memory(config("model.path=somebody/something")) == []


def test_full_training_of_bf16_weights_at_a_small_rate_is_warned_of(config: Callable[..., Config]) -> None:
    words = ("model.dtype=bfloat16", "optim.lr=1e-6")
    found = [finding for finding in preflight(config(*words), "tutor") if finding.check == "precision"]
    assert [finding.level for finding in found] == [Level.warning]
    assert "optim.lr=1e-06 are mostly rounded away" in found[0].message
    assert "learner.autocast=bfloat16" in found[0].remedy
    for harmless in (("model.lora.rank=8",), ("optim.lr=1e-3",), ("model.dtype=float32",)):
        assert check_precision(config(*words, *harmless)) == []


@pytest.mark.parametrize(
    ("experiment", "method"),
    [("small", "rsft"), ("small", "dpo"), ("small", "sft-gentle"), ("paper", "sft-overtrained"), ("paper", "gkd")],
)
def test_a_method_without_a_recipe_at_the_default_rate_is_warned_of(experiment: str, method: str) -> None:
    def found(*words: str) -> list[Finding]:
        every = [f"experiment={experiment}", f"method={method}", "model=tiny", "rollout=hf", *words]
        checked = preflight(compose(every), "tutor", ["onpol", "train", "tutor", *every, "--resume"])
        return [finding for finding in checked if finding.check == "learning rate"]

    (finding,) = found()
    assert finding.level is Level.warning and "Set optim.lr" in finding.remedy
    assert f"experiment={experiment} has no recipe for method={method}" in finding.message
    assert "default optim.lr=1e-06, constant" in finding.message
    other = f"recipe={experiment}-sft"
    assert f"{experiment}-sft" in finding.remedy and compose([f"experiment={experiment}", other]).optim.lr == 1e-5
    for chosen in ("optim.lr=1e-6", other):
        assert found(chosen) == [], chosen


def test_doctor_warns_of_rates_that_nobody_chose(no_hub: None) -> None:
    words = ["experiment=small", "method=dpo", "model=tiny", "rollout=hf"]
    assert "learning rate" in [finding.check for finding in examine(compose(words), words)]
    for rate in ("optim.lr=2e-6", "optim=muon", "method=rl", "experiment=none"):
        assert check_rates(compose([*words, rate]), [*words, rate]) == [], rate
    own = compose(["experiment=small", "optim.lr=1e-6"])
    own.matrix.rows = [RowConfig("sft"), RowConfig("dpo", overrides=["method=dpo"])]
    assert [f.check for f in row_findings(own, ["experiment=small"])] == ["row dpo: learning rate"]


def test_adapters_at_a_small_rate_are_warned_of(config: Callable[..., Config]) -> None:
    words = ("model.lora.rank=8", "optim.lr=1e-6")
    found = [finding for finding in preflight(config(*words), "tutor") if finding.check == "adapter rate"]
    assert [finding.level for finding in found] == [Level.warning] and found[0] in examine(config(*words))
    assert "model.lora.rank=8) hardly move at optim.lr=1e-06" in found[0].message and "optim.lr=1e-4" in found[0].remedy
    for harmless in ("model.lora.rank=0", "optim.lr=1e-5", "optim=muon"):
        checked = preflight(config(*words, harmless), "tutor")
        assert not [finding for finding in checked if finding.check == "adapter rate"], harmless


@pytest.mark.parametrize(("rate", "moved"), [(1e-6, 0.02), (1e-5, 0.16), (1e-4, 0.88)])
def test_what_bf16_weights_keep_of_small_steps(rate: float, moved: float) -> None:
    from onpol_cli.core.config import OptimConfig
    from onpol_cli.learner.optim import Optimiser

    weights = 0.02 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    parameter = torch.nn.Parameter(weights.bfloat16())
    optimiser = Optimiser([("w", parameter)], [], OptimConfig(lr=rate), 50)
    for _ in range(50):
        parameter.grad = torch.ones_like(parameter)
        optimiser.step()
    changed = (parameter.detach() != weights.bfloat16()).float().mean()
    assert float(changed) == pytest.approx(moved, abs=0.03)
