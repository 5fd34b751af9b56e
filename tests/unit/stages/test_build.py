"""What is refused while the parts of a run are put together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onpol_cli.core.compose import compose
from onpol_cli.core.errors import OnpolError
from onpol_cli.stages import build


@pytest.mark.parametrize("tutor", [(), ("tutor=anything",)])
def test_several_tutors_are_asked_for_by_domain(tutor: tuple[str, ...]) -> None:
    with pytest.raises(OnpolError, match=r"method\.tutors\.DOMAIN=RUN"):
        build.require_tutor(compose(["method=multi_opd", *tutor]))


def test_no_problems_are_not_taken_for_prompts_that_are_too_long() -> None:
    task: Any = SimpleNamespace(name="tiny-edit")
    chat: Any = SimpleNamespace()
    with pytest.raises(OnpolError, match=r"tiny-edit: no problems .* Raise task\.validation_problems"):
        build.encoded(task, chat, [], compose([]))
