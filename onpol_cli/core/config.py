"""The configuration schema: every setting, its type, its default and what it means.

Defaults live here and nowhere else; YAML under `conf/` holds only what differs. Code receives these
dataclasses (built by `core.compose`), never `DictConfig`. Range checks sit in `__post_init__` and
raise `OnpolError`. OmegaConf 2.3 refuses `Literal` and frozen schemas, hence enums and plain
dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from onpol_cli.core.errors import OnpolError


def check(condition: bool, message: str) -> None:
    """Raise `OnpolError(message)` unless `condition`."""
    if not condition:
        raise OnpolError(message)


def at_least(bound: float, prefix: str, config: object, *names: str) -> None:
    """`check` that settings `names` of `config` are numbers of at least `bound`; `prefix` goes before them."""
    for name in names:
        value = getattr(config, name)
        check(value >= bound, f"{prefix}{name} must be >= {bound}, got {value}.")


def above(bound: float, prefix: str, config: object, *names: str) -> None:
    """The same for numbers above `bound`."""
    for name in names:
        value = getattr(config, name)
        check(value > bound, f"{prefix}{name} must be > {bound}, got {value}.")


def share(prefix: str, config: object, *names: str) -> None:
    """The same for shares in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        check(0 <= value <= 1, f"{prefix}{name} must be in [0, 1], got {value}.")


class Device(StrEnum):
    """Where the learner runs; `auto` takes CUDA where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """Number format of weights or of autocast."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Schedule(StrEnum):
    """Learning-rate course after warm-up."""

    constant = "constant"
    cosine = "cosine"
    linear = "linear"


class RatioMode(StrEnum):
    """What happens to tokens whose importance ratio leaves [ratio_low, ratio_high].

    `mask`: no gradient from them (the paper). `truncate`: ratio clipped to the bound.
    `none`: used as it is.
    """

    mask = "mask"
    truncate = "truncate"
    none = "none"


class OpdSignal(StrEnum):
    """Per-token signal of a distillation method."""

    sampled = "sampled"
    """log p_teacher - log p_policy of the sampled token as an advantage."""
    reverse = "reverse"
    """Exact KL(policy || teacher) over the vocabulary."""
    forward = "forward"
    """Exact KL(teacher || policy) over the vocabulary."""
    jsd = "jsd"
    """Generalised Jensen-Shannon divergence with `beta` over the vocabulary."""
    topk_reverse = "topk_reverse"
    topk_forward = "topk_forward"


class Engine(StrEnum):
    """Rollout engines."""

    hf = "hf"
    vllm = "vllm"
    vllm_server = "vllm_server"


class LoraSync(StrEnum):
    """How trained LoRA adapters reach the sampler."""

    merged = "merged"
    """As whole weights with the adapters merged into them."""
    adapter = "adapter"
    """As adapters beside weights that stay as they are (vLLM only)."""


class WeightTransfer(StrEnum):
    """How whole weights reach vLLM servers."""

    auto = "auto"
    """ipc for servers that onpol starts on a GPU, else reload."""
    reload = "reload"
    """Through a folder that they read."""
    ipc = "ipc"
    """Handles of GPU memory, for servers on the learner's own GPU."""
    nccl = "nccl"
    """Broadcast between GPUs."""


class ScorerKind(StrEnum):
    """Who computes the teacher's log-probs."""

    learner = "learner"
    """A frozen model in this process, through the learner's own engine."""
    vllm_server = "vllm_server"


class GuardAction(StrEnum):
    """What a monitor does when its threshold is crossed."""

    off = "off"
    warn = "warn"
    stop = "stop"


@dataclass
class RunConfig:
    """Identity and upkeep of one run."""

    name: str | None = None
    """Directory name; default `<command>-<method>-<tutor>-s<seed>-<time>`."""
    save_every: int = 0
    """Steps between resumable states; 0 saves only when a signal, a monitor or a non-finite number stops the run.
    `state/step-N/model` of each is a Hugging Face folder."""
    keep_last: int = 2
    """Older states beyond this number are deleted; at least 1."""
    keep_best: bool = True
    """Keep the weights of the validation with the highest reward (mean over tasks) in `best/`."""
    validate_every: int = 0
    """Steps between validations; 0 never validates."""
    loggers: list[str] = field(default_factory=list)
    """Optional extra loggers: tensorboard, wandb, trackio."""

    def __post_init__(self) -> None:
        check(self.keep_last >= 1, f"run.keep_last must be >= 1, got {self.keep_last}.")
        check(self.save_every >= 0, f"run.save_every must be >= 0 (0: only at a stop), got {self.save_every}.")
        check(self.validate_every >= 0, f"run.validate_every must be >= 0 (0: never), got {self.validate_every}.")


@dataclass
class PathsConfig:
    """Where things are."""

    runs: str = "results/runs"
    """Folder of run directories, relative to the working directory."""
    results: str = "results"
    """Folder for written comparisons."""


@dataclass
class LoraConfig:
    """Low-rank adapters through peft; rank 0 trains all weights."""

    rank: int = 0
    alpha: float = 0.0
    """0 takes 2 x rank."""
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )

    def __post_init__(self) -> None:
        at_least(0, "model.lora.", self, "rank", "alpha")
        check(0 <= self.dropout < 1, f"model.lora.dropout must be in [0, 1), got {self.dropout}.")


@dataclass
class ModelConfig:
    """The starting policy."""

    path: str = "tiny"
    """`tiny` is the model shipped with the package; else a folder, a run, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of the hub model in `path`: of weights, tokenizer and template, in every part."""
    dtype: Dtype = Dtype.float32
    """Format in which weights are held. Full training wants float32: bf16 rounds small steps away (docs/gpu.md)."""
    device: Device = Device.auto
    attention: str = "auto"
    """transformers' attn_implementation; `auto` leaves it to transformers. The native decoder has its own attention."""
    random_weights: bool = False
    """Build the architecture of `path`'s config.json with random weights (no weights needed)."""
    max_context: int = 4096
    """Prompt plus completion, tokens. Longer training sequences are dropped and counted."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        at_least(1, "model.", self, "max_context")


@dataclass
class TaskConfig:
    """What is trained on."""

    name: str = "tiny-edit"
    data: str | None = None
    """Data file of tasks that are not generated."""
    families: str = "out-of-domain"
    """Corruption families of the training problems: in-domain, out-of-domain, all, or a comma list."""
    problems: int = 2000
    """Training problems (0: all that there are)."""
    validation_problems: int = 300
    world_seed: int = 0
    """Seed of the procedural world; the split is by program identity, whatever the seed."""
    prompt: str = "generic"
    """Prompt condition of edit tasks: generic or explicit."""
    shots: int = 0
    templates: dict[str, str] = field(default_factory=dict)
    """Replacement prompt texts by name (edit tasks: generic, explicit, system)."""


@dataclass
class MethodConfig:
    """What each token is told. One dataclass for all methods; `conf/method/*.yaml` set `name`."""

    name: str = "sft"
    variant: str = ""
    """Name of the YAML choice (`latest:<variant>` finds it); empty takes `name`."""
    label: str = ""
    """How tables call it; empty takes the name in capitals."""
    steps: int = 50
    """Optimiser steps; 0 derives them from `epochs` (dataset methods)."""
    epochs: float = 0.0
    batch: int = 16
    """Sequences (dataset methods) per optimiser step; pairs for dpo."""
    prompts: int = 32
    """Prompts per step (on-policy methods)."""
    group: int = 16
    """Rollouts per prompt (on-policy methods; base samples per problem for rsft and dpo)."""
    adv_coef: float = 0.0
    """Weight of reward minus group mean."""
    teacher_coef: float = 0.0
    """Weight of log p_teacher - log p_policy."""
    signal: OpdSignal = OpdSignal.sampled
    beta: float = 0.5
    """Jensen-Shannon mixture (jsd)."""
    topk: int = 64
    lam: float = 1.0
    """gkd: probability that a batch is sampled from the policy rather than the dataset."""
    keep: int = 3
    """rsft: passing samples with the smallest distance kept per problem."""
    dpo_beta: float = 0.1
    ratio_mode: RatioMode = RatioMode.mask
    ratio_low: float = 0.125
    ratio_high: float = 8.0
    sequence_ratio_low: float = 0.1
    """Sequences whose geometric-mean ratio leaves [low, high] are masked; 0 and inf turn it off."""
    sequence_ratio_high: float = 10.0
    sequence_ratio_max: float = 100.0
    """Sequences with any token ratio above this are masked."""
    signal_clip: float = 0.0
    """Clip of the per-token teacher signal (signal=sampled only), nats; 0 is off."""
    reference_kl: float = 0.0
    """Weight of a k3 KL to the reference, on sampled tokens, whatever the signal; 0 is off."""
    teacher_temperature: float = 1.0
    scorer: ScorerKind = ScorerKind.learner
    tutors: dict[str, str] = field(default_factory=dict)
    """multi-tutor opd: domain name -> tutor."""

    def __post_init__(self) -> None:
        at_least(1, "method.", self, "batch", "prompts", "group", "topk", "keep", "sequence_ratio_max")
        at_least(0, "method.", self, "steps", "epochs", "adv_coef", "teacher_coef", "signal_clip")
        above(0, "method.", self, "dpo_beta", "teacher_temperature")
        share("method.", self, "beta", "lam")
        for name in ("ratio", "sequence_ratio"):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            check(0 <= low <= 1 <= high, f"method.{name}_low and _high must lie around 1, got {low} and {high}.")

    @property
    def needs_tutor(self) -> bool:
        """Whether a tutor scores what the policy is trained on; opsd is its own."""
        return self.teacher_coef != 0 and self.name != "opsd"


@dataclass
class SamplingConfig:
    """How completions are drawn. Always sent in full, so that no server default applies."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    """-1 (or 0) is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 192

    def __post_init__(self) -> None:
        at_least(0, "", self, "temperature")
        check(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}.")
        at_least(-1, "", self, "top_k")
        share("", self, "min_p")
        above(0, "", self, "repetition_penalty")
        at_least(1, "", self, "max_new_tokens")


@dataclass
class RolloutConfig:
    """The engine that samples."""

    engine: Engine = Engine.hf
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_batch: int = 256
    """Sequences decoded at once (hf), or vLLM's max_num_seqs."""
    dtype: Dtype = Dtype.float32
    """Number format of the sampler's layers; equal to the learner's keeps mismatch low (docs/gpu.md)."""
    max_off_policy_steps: int = 0
    """1: the next batch is generated while the learner trains on the last one; states hold it, so that a resumed run
    goes on with it."""
    gpu_memory: float = 0.45
    """vLLM: share of GPU memory."""
    tensor_parallel: int = 1
    enforce_eager: bool = False
    sleep: bool = True
    """vLLM on GPU: sleep level 1 while the learner trains."""
    lora_sync: LoraSync = LoraSync.merged
    """merged, or adapter: with model.lora.rank > 0 and vLLM only the adapter is sent after each step."""
    max_lora_rank: int = 64
    """vLLM with lora_sync=adapter: largest rank that it reserves for."""
    weight_transfer: WeightTransfer = WeightTransfer.auto
    """vllm_server: auto, reload, ipc or nccl. ipc and nccl need a GPU and one learner process."""
    max_context: int = 0
    """vLLM: prompt plus completion that it reserves for, tokens, at most the model's own; 0 takes model.max_context."""
    exchange: str = ""
    """Folder through which servers receive weights, visible to all of them; empty: memory-backed storage here."""
    servers: list[str] = field(default_factory=list)
    """vllm_server: base URLs; empty starts `local_servers` on loopback."""
    local_servers: int = 1
    teacher_servers: list[str] = field(default_factory=list)
    """method.scorer=vllm_server: base URLs of servers of the teacher; empty starts one on loopback."""
    timeout_s: float = 600.0
    """Longest wait for an engine: for the next of its requests to end (vllm), for each answer, start and transfer
    (vllm_server), for a batch that is made ahead."""
    concurrency: int = 64
    retries: int = 4
    canary_tolerance: float = 0.02
    """Largest allowed |sampler - learner| log-prob on the canary tokens after a sync, nats; 0 is off."""
    save: bool = False
    """Write token ids and log-probs of training rollouts into the run directory (for replay)."""

    def __post_init__(self) -> None:
        steps = self.max_off_policy_steps
        check(steps in (0, 1), f"rollout.max_off_policy_steps must be 0 or 1 (one batch ahead), got {steps}.")
        at_least(1, "rollout.", self, "max_batch", "tensor_parallel", "max_lora_rank", "local_servers", "concurrency")
        at_least(0, "rollout.", self, "max_context", "retries", "canary_tolerance")
        above(0, "rollout.", self, "gpu_memory", "timeout_s")
        check(self.gpu_memory <= 1, f"rollout.gpu_memory is a share of GPU memory, got {self.gpu_memory}.")


@dataclass
class LearnerConfig:
    """Forward, backward, memory."""

    micro_tokens: int = 8192
    """Token budget of one forward and backward, padding included."""
    chunk: int = 256
    """Tokens per chunk of vocabulary projection."""
    autocast: Dtype = Dtype.float32
    """bfloat16 runs the layers in bf16 (CUDA: the output matrix in TF32); logits and losses stay float32."""
    native: bool = True
    """On the CPU, run plain Qwen3 models, LoRA too, through the hand-written decoder (same numbers; docs/speed.md)."""
    gradient_checkpointing: bool = False
    """Recompute each layer in backward, in the native decoder too: less memory, a forward pass more."""
    compile: bool = False
    """torch.compile of each transformers layer, which then runs instead of the native decoder."""
    liger: bool = False
    """Liger's Triton kernels for norms, SwiGLU and rotary embedding (GPU; extra `liger`). The losses stay onpol's."""
    threads: int = 0
    """Torch threads on the CPU; 0 leaves torch's default."""

    def __post_init__(self) -> None:
        at_least(1, "learner.", self, "micro_tokens", "chunk")
        at_least(0, "learner.", self, "threads")


@dataclass
class OptimConfig:
    """The optimiser and its schedule."""

    name: str = "adamw"
    """adamw, or muon (Muon on matrices, AdamW elsewhere)."""
    lr: float = 1e-6
    matrix_lr: float = 5e-3
    """muon only: rate of the matrices."""
    schedule: Schedule = Schedule.constant
    warmup: float = 0.0
    """Share of all steps with a rising rate."""
    decay: float = 1.0
    """Share of all steps, at the end, over which cosine or linear falls."""
    final: float = 0.0
    """Rate at the end as a share of lr."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    """Gradient norm bound; 0 is off."""

    def __post_init__(self) -> None:
        at_least(0, "optim.", self, "lr", "matrix_lr", "weight_decay", "clip")
        share("optim.", self, "warmup", "decay", "final")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"optim.{name} must be in [0, 1), got {getattr(self, name)}.")
        above(0, "optim.", self, "eps")


@dataclass
class ParallelConfig:
    """Processes of the learner."""

    nproc: int = 1
    nnodes: int = 1
    rendezvous: str = ""
    """host:port of node 0 when nnodes > 1."""
    backend: str = "auto"
    """nccl, gloo, or auto by device."""
    shard_frozen: bool = True
    """Shard teachers and references scored here as the policy is; false keeps a whole copy in every process."""
    timeout_minutes: float = 120.0
    """How long a process waits for the others, which may be writing a checkpoint or grading, before it gives up."""

    def __post_init__(self) -> None:
        at_least(1, "parallel.", self, "nproc", "nnodes")
        above(0, "parallel.", self, "timeout_minutes")


@dataclass
class SandboxConfig:
    """Limits for untrusted programs. Each holds per program."""

    workers: int = 0
    """0: one per core and one more, which works while a program sleeps or another worker starts one."""
    cpu_s: float = 4.0
    """CPU seconds; the verdict's limit."""
    wall_s: float = 20.0
    """Wall-clock seconds; keep at least 5 x cpu_s so that load does not change verdicts."""
    memory_mb: int = 1024
    processes: int = 32
    file_mb: int = 16
    open_files: int = 64
    output_kb: int = 256
    require_isolation: bool = False
    """Refuse to run untrusted code without bubblewrap."""
    preload: list[str] = field(default_factory=list)
    """Modules that each worker imports once; a bench adds its own."""


@dataclass
class EvalConfig:
    """What is evaluated, and how answers are sampled for it."""

    benches: list[str] = field(default_factory=lambda: ["tiny-edit-ood", "tiny-edit-id", "tiny-codegen"])
    problems: int = 0
    """Problems per bench (0: all that the bench has)."""
    samples: int = 1
    """Answers per problem."""
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    """One evaluation per temperature; the first is the headline. 0 is greedy."""
    max_new_tokens: int = 192
    originals: bool = True
    """Also run the originals of minimal-edit once in each environment, for the scores on problems whose
    original passes."""
    kl: bool = True
    """Also measure KL(base || model) and KL(model || base) on held-out prompts."""
    kl_problems: int = 200
    """Validation prompts of each bench on which the KL is measured."""
    data: dict[str, str] = field(default_factory=dict)
    """Data file by bench name."""
    prompt: str = "generic"
    shots: int = 0
    seed: int = 1234
    """Seed of evaluation sampling, the same for every model."""

    def __post_init__(self) -> None:
        at_least(1, "eval.", self, "samples", "max_new_tokens")
        check(bool(self.temperatures), "eval.temperatures is empty: nothing would be evaluated.")


@dataclass
class MonitorConfig:
    """Thresholds that warn or stop a training run."""

    action: GuardAction = GuardAction.warn
    loss_spike: float = 10.0
    """Magnitude of the loss this many spreads above its running median (last 20 steps, from the sixth on). A spread
    is 1.48 x the median absolute deviation, at least a fifth of the median and at least `loss_spread`."""
    loss_spread: float = 0.01
    """Smallest spread of the loss that counts, nats a token (pairs for dpo): a rise below `loss_spike` x this never
    fires, which policy-gradient losses around 0 need."""
    entropy_floor: float = 0.005
    """Entropy below this, nats a token; 0 is off."""
    entropy_share: float = 0.1
    """Entropy below this share of the first step's; 0 is off. The tiny experiment ends at 0.22 to 0.40."""
    length_factor: float = 3.0
    """Mean length above this multiple of the first step's; where rollout.sampling.max_new_tokens lies below that
    multiple, three quarters of the way from the first step's to it and 1.5 times the first step's (or this multiple,
    if it is less). A first step nearer to the limit than that is `truncated_share`'s business."""
    truncated_share: float = 0.5
    """Share of rollouts that hit the token limit."""
    pass_below_fail_share: float = 0.5
    """This share of the passing rollouts, or more, is paid less than a failure, which teaches to fail (edit tasks)."""
    pass_drop: float = 0.15
    """Reward-hacking watch: the share of passing rollouts fell by this, while the reward rose (means of the latest
    and of the first 5 steps); 1 is off."""


@dataclass
class BaseConfig:
    """Shape and mixture of `onpol train base`."""

    hidden: int = 192
    layers: int = 5
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 64
    ffn: int = 512
    vocab: int = 768
    keep_style: float = 0.35
    """Share of repair examples whose target keeps the style of the corrupted function."""
    codegen_share: float = 0.4
    repair_share: float = 0.5
    """The rest copies."""
    batch_tokens: int = 8192


@dataclass
class RowConfig:
    """One model of a reproduction: which command makes it, from which tutor, with which overrides."""

    name: str = ""
    command: str = "train tutor"
    """`train tutor`, `distill student`, or `base` (evaluated as it is)."""
    tutor: str = ""
    """Name of the row whose model is the tutor."""
    overrides: list[str] = field(default_factory=list)


@dataclass
class MatrixConfig:
    """The rows of `onpol reproduce`, and what --quick changes."""

    rows: list[RowConfig] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    claims: str = "paper"
    """Claims that the comparison judges."""
    jobs: int = 0
    """Rows made at the same time; 0: one per core (CPU), 1 on GPUs."""
    quick: list[str] = field(default_factory=list)
    """Overrides that --quick adds to every row and evaluation."""
    quick_rows: dict[str, list[str]] = field(default_factory=dict)
    """Further --quick overrides by row."""


@dataclass
class Config:
    """Everything a command needs, composed by Hydra from `conf/` and the command line."""

    seed: int = 0
    tutor: str | None = None
    """Run, path or `latest:<method>` of the teacher (distill student)."""
    run: RunConfig = field(default_factory=RunConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    matrix: MatrixConfig = field(default_factory=MatrixConfig)
    claims: Any = None
    """Claims to judge (conf/claims/*.yaml), read by the comparison."""

    def __post_init__(self) -> None:
        self.rollout.max_context = self.rollout.max_context or self.model.max_context
