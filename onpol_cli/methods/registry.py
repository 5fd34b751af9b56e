"""Names of methods."""

from __future__ import annotations

import difflib

from onpol_cli.core.config import MethodConfig, OpdSignal, ScorerKind
from onpol_cli.core.errors import OnpolError
from onpol_cli.methods.base import Context, Method
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
    if issubclass(METHODS[config.name], OnPolicy) and config.adv_coef == 0 and config.teacher_coef == 0:
        raise OnpolError(
            f"method.name={config.name} with adv_coef=0 and teacher_coef=0 has no signal. Set one of them."
        )
    if config.adv_coef != 0 and config.group < 2:
        raise OnpolError("method.group=1 makes every advantage 0. Use at least 2 rollouts per prompt.")
    _check_signal(config)


ONE_TEACHER_HEAD = ("multi_opd", "opsd")
"""Methods whose exact divergence would need another output matrix than the one that the learner is given."""


def _check_signal(config: MethodConfig) -> None:
    """Refuse exact signals where no single teacher's hidden states can be had."""
    if not needs_hidden(config):
        return
    if config.name in ONE_TEACHER_HEAD:
        raise OnpolError(f"method.name={config.name} takes method.signal=sampled only, got {config.signal.value}.")
    if config.scorer is ScorerKind.vllm_server:
        raise OnpolError(
            f"method.signal={config.signal.value} needs the teacher's hidden states, which a vLLM server "
            "does not give. Use method.scorer=learner, or method.signal=sampled."
        )


def needs_teacher(config: MethodConfig) -> bool:
    """Whether a tutor must be given."""
    return config.teacher_coef != 0 and config.name not in ("opsd",)


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
