"""Names of methods."""

from __future__ import annotations

import difflib

from onpol_cli.core.config import MethodConfig, OpdSignal, ScorerKind
from onpol_cli.core.errors import OnpolError
from onpol_cli.methods.base import Context, Method, Source
from onpol_cli.methods.dpo import Dpo
from onpol_cli.methods.gkd import Gkd
from onpol_cli.methods.multi_opd import MultiTutorOpd
from onpol_cli.methods.on_policy import OnPolicy
from onpol_cli.methods.opsd import SelfDistillation
from onpol_cli.methods.rsft import RejectionSft
from onpol_cli.methods.sft import Sft

METHODS: dict[str, type[Sft] | type[Dpo] | type[OnPolicy]] = {
    "sft": Sft,
    "rsft": RejectionSft,
    "dpo": Dpo,
    "rl": OnPolicy,
    "opd": OnPolicy,
    "rl_opd": OnPolicy,
    "multi_opd": MultiTutorOpd,
    "opsd": SelfDistillation,
    "gkd": Gkd,
}


def check_method(config: MethodConfig) -> None:
    """Refuse unknown names and settings that would train on nothing."""
    if config.name not in METHODS:
        close = difflib.get_close_matches(config.name, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise OnpolError(f"Unknown method {config.name!r}.{hint} Methods: {', '.join(METHODS)}.")
    if config.steps == 0 and config.epochs <= 0:
        raise OnpolError("method.steps=0 and method.epochs=0: nothing to do. Set one of them.")
    if config.steps == 0 and METHODS[config.name].source is not Source.DATASET:
        raise OnpolError(
            f"method.steps=0 counts epochs over a data set, and method.name={config.name} samples its completions. Set "
            "method.steps: each takes method.prompts prompts."
        )
    if issubclass(METHODS[config.name], OnPolicy) and config.adv_coef == 0 and config.teacher_coef == 0:
        raise OnpolError(
            f"method.name={config.name} with adv_coef=0 and teacher_coef=0 has no signal. Set one of them."
        )
    if config.adv_coef != 0 and config.group < 2:
        raise OnpolError("method.group=1 makes every advantage 0. Use at least 2 rollouts per prompt.")
    if config.tutors and config.name != "multi_opd":
        raise OnpolError(f"method.tutors are for method=multi_opd; method={config.name} has one: tutor=RUN.")
    _check_signal(config)
    _check_reference(config)


ONE_TEACHER_HEAD = ("multi_opd", "opsd")
"""Methods whose exact divergence would need another output matrix than the one that the learner is given."""


def _check_signal(config: MethodConfig) -> None:
    """Refuse settings that the signal cannot use, and exact signals without a single teacher's hidden states."""
    if config.name == "gkd":
        _check_gkd(config)
    if not needs_hidden(config):
        return
    if config.signal_clip != 0:
        raise OnpolError(
            f"method.signal_clip={config.signal_clip} clips the signal of sampled tokens; "
            f"method.signal={config.signal.value} has none. Set method.signal_clip=0, or method.signal=sampled."
        )
    if config.name in ONE_TEACHER_HEAD:
        raise OnpolError(f"method.name={config.name} takes method.signal=sampled only, got {config.signal.value}.")
    if config.scorer is ScorerKind.vllm_server:
        raise OnpolError(
            f"method.signal={config.signal.value} needs the teacher's hidden states, which a vLLM server "
            "does not give. Use method.scorer=learner, or method.signal=sampled."
        )


def _check_gkd(config: MethodConfig) -> None:
    if config.signal is OpdSignal.sampled:
        raise OnpolError("gkd needs a full-vocabulary signal: method.signal=reverse, forward or jsd.")
    if config.adv_coef != 0:
        raise OnpolError(
            f"gkd has no reward term, got method.adv_coef={config.adv_coef}. Set method.adv_coef=0, "
            f"or method=rl_opd method.signal={config.signal.value} for both."
        )


def _check_reference(config: MethodConfig) -> None:
    """Refuse a penalty towards the reference where no token of the policy's own could carry it."""
    weight = config.reference_kl
    if weight < 0:
        raise OnpolError(f"method.reference_kl={weight} would push away from the reference. Set it to 0 or more.")
    if weight > 0 and not issubclass(METHODS[config.name], OnPolicy):
        raise OnpolError(
            f"method.reference_kl={weight} is a penalty on tokens sampled by the policy, and method.name={config.name} "
            "trains on none. Set method.reference_kl=0."
        )
    if weight > 0 and config.name == "gkd" and config.lam < 1:
        raise OnpolError(
            f"method.reference_kl={weight} is estimated on tokens sampled by the policy, and with "
            f"method.lam={config.lam} some steps of gkd have none. Set method.lam=1 or method.reference_kl=0."
        )


def scores_by_teacher(config: MethodConfig) -> bool:
    """Whether building a step's examples makes a teacher (for opsd the policy itself) read every token."""
    return issubclass(METHODS[config.name], OnPolicy) and config.teacher_coef != 0


def needs_hidden(config: MethodConfig) -> bool:
    """Whether the teacher is asked for hidden states (full-vocabulary signals)."""
    return config.teacher_coef != 0 and config.signal is not OpdSignal.sampled


def needs_reference(config: MethodConfig) -> bool:
    """Whether the frozen start must be kept for scoring."""
    return config.name == "dpo" or config.reference_kl != 0


def build_method(config: MethodConfig, context: Context) -> Method:
    """The method that `config.name` names."""
    check_method(config)
    method: Method = METHODS[config.name](config, context)
    return method
