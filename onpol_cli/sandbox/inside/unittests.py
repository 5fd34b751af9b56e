"""Judging tests that run in the program's process: when such a verdict is believed.

Owns the judge's half of `in_process`: preparing the test source, sending it late with a secret, and
accepting the answer only if secret, count of tests and the kernel's view of the program agree.
"""

from __future__ import annotations

import ast
import os
import secrets
from typing import Any

from onpol_cli.sandbox import codec

_RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "late_runner.py")
_OWN_HANDLERS = 1 << 1 | 1 << 31 | 1 << 32
"""Mask of caught signals: SIGINT is Python's, 32 and 33 are the C library's for threads."""
_THREADS = 2  # main and the program's own


def prepare(test_source: str, class_name: str) -> tuple[str, int]:
    """Source to send, with each test method refusing to run outside the main thread; number of tests.

    Raises:
        SyntaxError: the test source does not parse.
    """
    tree = ast.parse(test_source)
    found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    names: set[str] = set()
    pending = [class_name]
    while pending:
        node = found.pop(pending.pop(), None)
        if node is None:
            continue
        pending += [base.id for base in node.bases if isinstance(base, ast.Name)]
        for item in node.body:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name.startswith("test"):
                names.add(item.name)
                item.body.insert(0, ast.parse("__onpol_here__()").body[0])
    return ast.unparse(ast.fix_missing_locations(tree)), len(names)


def judge_unittest(session: Any, job: dict[str, Any], parts: list[bytes]) -> dict[str, Any]:
    """UnittestJob, and AssertJob with `in_process`."""
    from onpol_cli.sandbox.inside.judge import load, program_header

    script = job["kind"] == "in_process_script"
    try:
        tests, count = (job["test_source"], 1) if script else prepare(job["test_source"], job["class_name"])
    except (SyntaxError, ValueError, RecursionError) as error:
        session.start(program_header(job, "unittest"))
        return {"status": "error", "detail": f"the test source does not parse: {error}"}
    session.preload("unittest.mock")
    failure = load(session, program_header(job, "unittest"))
    if failure:
        return failure
    state = session.census()
    if state["threads"] != _THREADS or state["others"] or state["caught"] & ~_OWN_HANDLERS:
        return {"status": "error", "detail": "the program leaves threads, processes or signal handlers while loading"}
    return _verdict(session, job, tests, count)


def _verdict(session: Any, job: dict[str, Any], tests: str, count: int) -> dict[str, Any]:
    from onpol_cli.sandbox.inside.judge import SHORT_BYTES

    secret = secrets.token_hex(16)
    with open(_RUNNER) as file:
        runner = file.read()
    entry = job["entry_point"]
    late = {"runner": runner, "tests": tests, "secret": secret, "class_name": job.get("class_name", "")}
    late |= {"entry_point": entry, "function": entry, "script": job["kind"] == "in_process_script"}
    reply = codec.loads(session.ask(codec.dumps(late), SHORT_BYTES))
    if not isinstance(reply, dict) or not secrets.compare_digest(str(reply.get("secret")), secret):
        return {"status": "error", "detail": "the verdict came without the secret"}
    if reply["forged"]:
        return {"status": "failed", "detail": str(reply["forged"][0])[:300]}
    if reply["failures"]:
        return {"status": "failed", "detail": str(reply["failures"][0])[:300]}
    if reply["run"] != count or count == 0:
        return {"status": "failed", "detail": f"{reply['run']} tests ran, {count} expected"}
    return {"status": "passed"}
