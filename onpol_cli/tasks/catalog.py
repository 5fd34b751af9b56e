"""The benches that onpol knows: what they are, their licence, and where their data come from.

Owns the facts that `onpol data list` shows and the search for a bench's data file. Reading files and
building tasks is the benches' and the registry's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from onpol_cli.core.errors import OnpolError

DATA_ENV = "ONPOL_DATA"
"""Environment variable that names a folder with data files."""


@dataclass(frozen=True)
class BenchInfo:
    """One bench.

    Attributes:
        name: word used with `--bench`.
        kind: "edit" (repair a function) or "generation" (write one).
        licence: of the data.
        size: problems.
        source: URL of the project.
        description: one line.
        hub: Hugging Face dataset id, "" if there is none.
        hub_file: file within it.
        folder: sub-folder of `ONPOL_DATA` that is searched.
        files: names under which the data file is known there.
        download: URL of the raw file, where the hub has none.
    """

    name: str
    kind: str
    licence: str
    size: int
    source: str
    description: str
    hub: str = ""
    hub_file: str = ""
    folder: str = ""
    files: tuple[str, ...] = ()
    download: str = ""

    @property
    def generated(self) -> bool:
        """Whether the problems are made by this project, without a data file."""
        return not self.folder


_HERE = "https://github.com/nreHieW/over-editing"
BENCHES: dict[str, BenchInfo] = {
    info.name: info
    for info in (
        BenchInfo("tiny-edit-ood", "edit", "Apache-2.0", 1000, "onpol", "procedural repairs, families not trained on"),
        BenchInfo("tiny-edit-id", "edit", "Apache-2.0", 1000, "onpol", "procedural repairs, families trained on"),
        BenchInfo("tiny-codegen", "generation", "Apache-2.0", 1000, "onpol", "procedural functions from a description"),
        BenchInfo(
            "minimal-edit", "edit", "Apache-2.0", 400, _HERE,
            "BigCodeBench functions with 1-2 planted corruptions (the paper's evaluation set)",
            folder="minimal_edit", files=("corrupted_solutions_manual_easy_400.jsonl",), download=_HERE,
        ),
        BenchInfo(
            "humanevalfix", "edit", "MIT", 164, "https://huggingface.co/datasets/bigcode/humanevalpack",
            "HumanEval functions with bugs planted by people",
            hub="bigcode/humanevalpack", hub_file="data/python/data/humanevalpack.jsonl",
            folder="humanevalfix", files=("humanevalpack.jsonl",),
        ),
        BenchInfo(
            "quixbugs", "edit", "MIT", 40, "https://github.com/jkoppel/QuixBugs",
            "classic algorithms with a one-line bug",
            folder="quixbugs", files=("quixbugs.jsonl",), download="https://github.com/jkoppel/QuixBugs",
        ),
        BenchInfo(
            "livecodebench", "generation", "code MIT; statements from contests: evaluate only", 1055,
            "https://huggingface.co/datasets/livecodebench/code_generation_lite",
            "contest problems by date (v6: the 175 of 2025-01 to 2025-04)",
            hub="livecodebench/code_generation_lite", hub_file="test6.jsonl",
            folder="livecodebench", files=("test6.jsonl", "test6.jsonl.gz"),
        ),
        BenchInfo(
            "humaneval", "generation", "MIT", 164, "https://github.com/openai/human-eval",
            "functions from signature and docstring",
            hub="openai/openai_humaneval", hub_file="openai_humaneval/test-00000-of-00001.parquet",
            folder="humaneval", files=("HumanEval.jsonl.gz", "HumanEval.jsonl"),
        ),
        BenchInfo(
            "mbpp", "generation", "CC-BY-4.0", 427, "https://github.com/google-research/google-research/tree/master/mbpp",
            "short functions from one sentence (sanitized)",
            folder="mbpp", files=("sanitized-mbpp.json",),
            download="https://github.com/google-research/google-research/raw/master/mbpp/sanitized-mbpp.json",
        ),
    )
}  # fmt: skip
"""By name."""


def locate_data(name: str, given: str | None = None) -> Path:
    """The data file of a bench: the given path, else a known file under $ONPOL_DATA, else the hub.

    Raises:
        OnpolError: none of these has it; the message says how to get it.
    """
    info = BENCHES[name]
    assert not info.generated, f"{name} has no data file"
    if given:
        path = Path(given).expanduser()
        if not path.exists():
            raise OnpolError(f"{name}: {path} does not exist. {how_to_get(info)}")
        return path
    folder = os.environ.get(DATA_ENV)
    for file in info.files if folder else ():
        path = Path(str(folder)) / info.folder / file
        if path.is_file():
            return path
    if not info.hub:
        raise OnpolError(f"{name} needs a data file: --data FILE. {how_to_get(info)}")
    return download(info, info.hub_file)


def download(info: BenchInfo, file: str) -> Path:
    """One file of a bench from the Hugging Face hub, from its cache where it is there.

    Raises:
        OnpolError: no network, or no such file.
    """
    from huggingface_hub import hf_hub_download  # slow to import
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(info.hub, file, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise OnpolError(f"{info.name}: cannot get {file} from the hub ({reason}). {how_to_get(info, file)}") from error


def how_to_get(info: BenchInfo, file: str = "") -> str:
    """One sentence: how a user gets the data file and hands it over."""
    if info.hub:
        name = file or info.hub_file
        return f"Get it with `hf download {info.hub} {name} --repo-type dataset`, then add --data FILE."
    if info.name == "quixbugs":
        return f"Run `git clone {info.download}`, then add --data QuixBugs (the folder)."
    return f"Get {info.files[0]} from {info.download}, then add --data FILE."
