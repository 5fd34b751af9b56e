"""The memory plan: parameters counted as the real model has them, and each setting moves its part."""

import pytest
import torch
from learner_cases import make_config, make_model

from onpol_cli.core.config import Config, Dtype, Engine, OpdSignal, ScorerKind, WeightTransfer
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner import shapes
from onpol_cli.learner.model import add_adapters
from onpol_cli.learner.optim import Optimiser
from onpol_cli.learner.planner import BYTES, GIB, gpus_used, judge, optimiser_bytes, plan, samples
from onpol_cli.learner.shapes import QWEN3, find_shape, hf_config, shape_of
from onpol_cli.methods.base import Source
from onpol_cli.methods.registry import METHODS


@pytest.fixture
def qwen(tmp_path):
    """Folder with the configuration of Qwen3-0.6B."""
    hf_config(QWEN3["0.6B"]).save_pretrained(tmp_path)
    return str(tmp_path)


def planned(path, change=lambda config: None, available=80.0):
    config = make_config()
    config.model.path = path
    change(config)
    return plan(config, available)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(tied):
    model = make_model(tied=tied)
    assert shape_of(model.config).parameters == sum(p.numel() for p in model.parameters())


def test_known_model_by_hand(qwen):
    got = planned(qwen)
    assert got.parameters == 596_049_920
    assert got.learner["weights"] == pytest.approx(4 * got.parameters / GIB)
    assert got.learner["optimiser"] == pytest.approx(8 * got.parameters / GIB)
    assert got.learner["logits chunk"] == pytest.approx((2 * 4 * 256 * 151936 + 8 * 8192 * 1024) / GIB)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("optimiser", lambda c: setattr(c.parallel, "nproc", 8)),
        ("gradients", lambda c: setattr(c.model.lora, "rank", 8)),
        ("activations", lambda c: setattr(c.learner, "gradient_checkpointing", True)),
        ("logits chunk", lambda c: setattr(c.learner, "chunk", 32)),
    ],
)
def test_each_setting_shrinks_its_part(qwen, part, setting):
    assert planned(qwen, setting).learner[part] < 0.5 * planned(qwen).learner[part]


def test_verdict_and_advice(qwen):
    assert planned(qwen, available=1000.0).verdict == "fits"
    small = planned(qwen, available=20.0)
    assert small.verdict == "does not fit"
    assert "learner.gradient_checkpointing=true" in small.advice


def test_adapters_are_counted_exactly():
    from onpol_cli.core.config import LoraConfig

    model, lora = make_model(), LoraConfig(rank=3)
    add_adapters(model, lora, 0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_of(model.config).adapter_parameters(3, lora.targets) == trained


def test_frozen_models_are_sharded_unless_told_otherwise_and_free_under_adapters(qwen):
    def frozen(**changes):
        def change(config):
            config.method.name, config.method.teacher_coef, config.tutor = "opd", 1.0, "other"
            for name, value in changes.items():
                part, _, key = name.partition("__")
                setattr(getattr(config, part) if key else config, key or part, value)

        return planned(qwen, change).learner["frozen models"]

    one = frozen()
    assert one > 0 and frozen(parallel__nproc=8) == pytest.approx(one / 8)
    assert frozen(parallel__nproc=8, parallel__shard_frozen=False) == one
    assert frozen(parallel__nproc=8, method__signal=OpdSignal.reverse) > 1.1 * one / 8  # the output matrix is whole
    assert frozen(method__reference_kl=0.1) == 2 * one
    assert frozen(method__name="opsd") == 0

    def adapted(config):
        config.method.name, config.method.teacher_coef, config.tutor = "opd", 1.0, config.model.path
        config.method.reference_kl, config.model.lora.rank = 0.1, 8

    assert planned(qwen, adapted).learner["frozen models"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_sampler_is_planned_wherever_the_run_makes_one(qwen, name):
    def chosen(config):
        config.method.name = name

    kind = METHODS[name]
    made = kind.source is not Source.DATASET or kind.prepares
    assert (planned(qwen, chosen).rollout["kv cache"] > 0) == made
    validated = Config()
    validated.method.name, validated.run.validate_every = name, 10
    assert samples(validated)


def test_what_is_resident_while_samples_are_drawn(qwen):
    def sampling(**settings):
        def change(config):
            config.rollout.engine, config.method.name = Engine.vllm, "rl"
            config.learner.micro_tokens, config.rollout.gpu_memory = 16, 0.9  # training is small, sampling large
            for name, value in settings.items():
                part, _, key = name.partition("__")
                setattr(getattr(config, part), key, value)

        return planned(qwen, change)

    rl = sampling()
    kept = rl.learner["weights"] + rl.learner["optimiser"]  # gradients went with the step
    assert rl.peak == pytest.approx(kept + 0.9 * 80 + 1.0)
    before = sampling(method__name="dpo")  # samples before its first step, beside a reference
    assert before.peak == pytest.approx(2 * rl.learner["weights"] + 0.9 * 80 + 1.0)
    assert sampling(method__name="sft", run__validate_every=5).peak == pytest.approx(rl.peak)
    assert sampling(method__name="sft").peak < 0.3 * rl.peak
    ahead = sampling(rollout__max_off_policy_steps=1)  # the next batch is drawn while this one trains
    assert ahead.peak == pytest.approx(sum(ahead.learner.values()) + 0.9 * 80 + 1.0)


def test_the_embedded_sampler_keeps_its_weights_and_fits_its_cache_to_the_card(qwen):
    def change(config):
        config.rollout.engine, config.method.name = Engine.hf, "rl"
        config.rollout.max_batch, config.rollout.sampling.max_new_tokens = 100_000, 4096

    got = planned(qwen, change)
    kept = got.learner["weights"] + got.learner["optimiser"]
    free = 80 - 1.0 - kept - got.rollout["weights"]
    assert got.rollout["kv cache"] == pytest.approx(free / 3)
    assert got.peak >= sum(got.learner.values()) + got.rollout["weights"] + 1.0


CARD = 139.0
SHARE = 0.45 * CARD


def serving(path, **settings):
    """Configuration of an `opd` run with vLLM servers."""
    config = make_config()
    config.model.path = path
    config.method.name, config.method.teacher_coef, config.tutor = "opd", 1.0, "other"
    config.rollout.engine = Engine.vllm_server
    for name, value in settings.items():
        part, _, key = name.partition("__")
        setattr(getattr(config, part), key, value)
    return config


def served(path, gpus=1, available=CARD, **settings):
    """The plan of `serving` on a machine of so many GPUs."""
    return plan(serving(path, **settings), available, gpus)


def test_local_servers_on_the_learners_gpu_hold_their_share_all_the_time(qwen):
    far = served(qwen, rollout__servers=["http://far:1"])
    one = served(qwen)
    assert far.rollout["local servers"] == 0 and one.rollout["local servers"] == pytest.approx(SHARE)
    assert one.peak == pytest.approx(far.peak + SHARE)
    assert one.peak == pytest.approx(sum(one.learner.values()) + SHARE + 1.0)
    assert served(qwen, rollout__local_servers=2).rollout["local servers"] == pytest.approx(2 * SHARE)
    crowded = served(qwen, rollout__local_servers=2, available=60.0)
    assert crowded.verdict == "does not fit"
    assert crowded.advice.startswith("Largest part: local servers (54.0 GiB). Try rollout.servers")
    unknown = served(qwen, available=None)
    assert unknown.rollout["local servers"] > 2 * unknown.parameters / GIB and unknown.verdict == "unknown"


def test_a_teachers_server_comes_beside_those_that_sample(qwen):
    def servers(**settings):
        return served(qwen, method__scorer=ScorerKind.vllm_server, **settings).rollout["local servers"] / SHARE

    assert servers() == pytest.approx(2)
    assert servers(rollout__teacher_servers=["http://far:1"]) == pytest.approx(1)
    assert servers(rollout__servers=["http://far:1"]) == pytest.approx(1)
    assert servers(rollout__engine=Engine.hf) == pytest.approx(1)
    assert servers(method__tutors={"one": "a", "two": "b"}) == pytest.approx(3)
    assert servers(method__name="rl", method__teacher_coef=0.0) == pytest.approx(1)
    assert servers(method__name="sft", method__teacher_coef=0.0) == 0


def test_only_servers_that_share_a_gpu_with_the_learner_count(qwen):
    reload, nccl = WeightTransfer.reload, WeightTransfer.nccl

    def servers(gpus, **settings):
        return round(served(qwen, gpus, **settings).rollout["local servers"] / SHARE)

    assert servers(1) == servers(2, rollout__weight_transfer=WeightTransfer.ipc) == 1, "ipc goes to the learner's own"
    assert servers(2) == servers(2, rollout__weight_transfer=nccl) == servers(2, rollout__weight_transfer=reload) == 0
    assert servers(2, rollout__weight_transfer=reload, rollout__local_servers=2) == 1
    assert servers(8, parallel__nproc=8, rollout__local_servers=8) == 1
    assert servers(8, parallel__nproc=8, rollout__local_servers=9) == 2
    assert servers(8, parallel__nproc=4, rollout__local_servers=2, rollout__tensor_parallel=2) == 0
    assert servers(1, parallel__nproc=8) == 1, "each process sees its own GPU alone"
    assert servers(2, rollout__tensor_parallel=2) == 1
    assert servers(None, rollout__tensor_parallel=2) == 1, "no GPU here: as many as are needed"


def test_gpus_that_a_run_computes_on(qwen):
    def used(gpus, **settings):
        return gpus_used(serving(qwen, **settings), gpus)

    nccl, reload = WeightTransfer.nccl, WeightTransfer.reload
    assert used(8, rollout__weight_transfer=WeightTransfer.ipc) == 1, "the sampler is on the learner's own"
    assert used(8) == used(8, rollout__weight_transfer=reload) == used(8, rollout__weight_transfer=nccl) == 2
    assert used(8, rollout__weight_transfer=nccl, rollout__local_servers=2, rollout__tensor_parallel=2) == 5
    assert used(8, rollout__weight_transfer=reload, method__scorer=ScorerKind.vllm_server) == 3
    assert used(2, rollout__weight_transfer=reload, rollout__local_servers=4) == 2, "in turn on what there is"
    assert used(8, rollout__servers=["http://far:1"]) == 1
    assert used(8, rollout__engine=Engine.hf, parallel__nproc=4) == 4
    assert used(8, rollout__engine=Engine.hf, parallel__nproc=8, parallel__nnodes=2) == 16
    assert used(8, rollout__engine=Engine.vllm, rollout__tensor_parallel=2) == 2
    assert used(8, rollout__engine=Engine.vllm, rollout__tensor_parallel=2, method__name="sft") == 1


@pytest.mark.parametrize(("name", "dtype"), [("adamw", "float32"), ("adamw", "bfloat16"), ("muon", "float32")])
@pytest.mark.parametrize("rank", [0, 2])
def test_moments_are_those_that_torch_makes(name, dtype, rank):
    config = make_config()
    config.optim.name, config.model.dtype, config.model.lora.rank = name, Dtype[dtype], rank
    model = make_model().to(getattr(torch, dtype))
    if rank:
        model.requires_grad_(False)
        add_adapters(model, config.model.lora, 0)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    optimiser = Optimiser(list(trained.items()), {"model.embed_tokens.weight", "lm_head.weight"}, config.optim, 1)
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    assert all(parameter.grad is None for parameter in trained.values())
    states = [moments for part, _ in optimiser._parts for moments in part.state.values()]
    held = sum(t.nbytes for moments in states for t in moments.values() if t.ndim > 0)
    number = sum(p.numel() for p in trained.values())
    width = 4 if rank else BYTES[config.model.dtype]
    # Norms are vectors: AdamW's under muon, which the plan takes for matrices.
    assert optimiser_bytes(config, shape_of(model.config), number, width) == pytest.approx(held, rel=0.02)


def test_bf16_weights_are_advised_only_where_they_are_frozen():
    parts = {"weights": 60.0, "optimiser": 10.0}
    assert judge(80.0, 75.0, parts, lora=True)[1].endswith("Try model.dtype=bfloat16 or a larger parallel.nproc.")
    full = judge(80.0, 75.0, parts, lora=False)[1]
    assert full.endswith("Try model.lora.rank=16 with model.dtype=bfloat16, or a larger parallel.nproc.")


@pytest.mark.parametrize(
    ("name", "billions"), [("0.6B", 0.596), ("1.7B", 1.721), ("4B", 4.022), ("8B", 8.191), ("14B", 14.768)]
)
def test_published_shapes_have_the_published_number_of_weights(name, billions):
    assert QWEN3[name].parameters / 1e9 == pytest.approx(billions, abs=0.001)
    assert shape_of(hf_config(QWEN3[name])) == QWEN3[name]


def test_known_hub_names_need_no_network(monkeypatch, qwen):
    def refuse(*args):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(shapes, "_cached_folder", lambda name, revision: None)
    monkeypatch.setattr(shapes, "load_config", refuse)
    shape, origin = find_shape("Qwen/Qwen3-4B-Instruct-2507")
    assert shape == QWEN3["4B"] and origin.startswith("published sizes of Qwen3-4B")
    assert find_shape("Qwen/Qwen3-14B")[0] == QWEN3["14B"]
    assert shapes.local_shape("Qwen/Qwen3-30B-A3B") is None and shapes.local_shape("other/Qwen3-4B") is None
    monkeypatch.undo()
    assert find_shape(qwen) == (QWEN3["0.6B"], "config.json")


def test_a_downloaded_config_goes_before_published_sizes(monkeypatch, qwen):
    monkeypatch.setattr(shapes, "_cached_folder", lambda name, revision: qwen)
    assert find_shape("Qwen/Qwen3-4B") == (QWEN3["0.6B"], "config.json")


def test_other_architectures_are_refused_in_words():
    from transformers import GPT2Config

    with pytest.raises(OnpolError, match="sizes of gpt2 are not those"):
        shape_of(GPT2Config())


def test_a_larger_tutor_is_counted_as_large_as_it_is(qwen, monkeypatch):
    monkeypatch.setattr(shapes, "_cached_folder", lambda name, revision: None)

    def tutored(tutor):
        def change(config):
            config.method.name, config.method.teacher_coef, config.tutor = "opd", 1.0, tutor

        return planned(qwen, change).learner["frozen models"]

    assert tutored("Qwen/Qwen3-14B") == pytest.approx(4 * QWEN3["14B"].parameters / GIB)
    assert tutored("a-run-to-come") == pytest.approx(4 * QWEN3["0.6B"].parameters / GIB)


def test_names_that_are_no_hub_names_are_simply_not_in_its_cache():
    assert shapes.local_shape("latest:sft") is None


def test_exact_signals_hold_five_chunks_of_logits(qwen):
    def chunks(name, signal):
        return served(qwen, method__name=name, method__signal=OpdSignal[signal]).learner["logits chunk"]

    assert chunks("rl_opd", "reverse") == chunks("opd", "reverse") > chunks("rl_opd", "sampled")
    assert chunks("rl_opd", "sampled") == chunks("rl", "sampled")
