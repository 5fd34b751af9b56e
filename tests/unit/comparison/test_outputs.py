"""Tables in every format, the JSON contract, plots, the report's text."""

import base64
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from comparison_runs import write_all
from rich.console import Console

from onpol_cli.comparison.compare import Comparison, compare
from onpol_cli.comparison.frames import HEADLINE, SCREEN, Frame, amount, headline_rows, number, p_value
from onpol_cli.comparison.paper import paper_counts, write_paper
from onpol_cli.comparison.render import plain, tex_escape, to_latex, to_markdown, to_rich
from onpol_cli.comparison.report.build import browser_data, pack
from onpol_cli.comparison.report.svg import page_svg

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "conf" / "claims" / "paper.yaml"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two seeds, two temperatures, written in all text formats."""
    root = tmp_path_factory.mktemp("runs")
    paths = write_all(root, seeds=(0, 1), problems=24, temperatures=[1.0, 0.0])
    return compare(paths, PAPER, root / "out", ["csv", "md", "tex", "json"])


def test_files_and_their_order(comparison: Comparison) -> None:
    names = {path.name for path in comparison.files}
    assert {"scores.csv", "differences.csv", "claims.csv", "costs.csv", "comparison.md", "comparison.tex"} <= names
    frames = comparison.sections["Scores"]
    assert [frame.name for frame in frames] == ["scores-tiny-edit-ood-t1", "scores-tiny-edit-ood-t0"]
    assert frames[0].columns == ("model", "Pass@1", "Norm. Lev.", "Added CC", "tiny-codegen", "Exact")
    assert [row[0] for row in frames[0].rows][:4] == ["base", "SFT", "  seed 0", "  seed 1"]


def test_problems_whose_original_fails_are_left_out_of_a_table_of_their_own(tmp_path: Path) -> None:
    paths = write_all(tmp_path, seeds=(0,), problems=20)
    assert "usable" not in compare(paths).rows
    for path in paths:
        rows = [json.loads(line) for line in (path / "problems.jsonl").read_text().splitlines()]
        for row in rows:
            row["original_passes"] = row["problem_id"] not in ("tiny-edit-ood/0", "tiny-edit-ood/3")
        (path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(paths)
    lines = [json.loads(line) for line in (paths[0] / "samples.jsonl").read_text().splitlines()]
    own = [x for x in lines if x["bench"] == "tiny-edit-ood" and x["problem_id"][-2:] not in ("/0", "/3")]
    wanted = sum(x["outcome"] == "passed" for x in own) / len(own)
    (cell,) = [r for r in found.rows["usable"] if r["model"] == "base" and r["metric"] == "pass@1"]
    assert (cell["n"], cell["problems"], cell["value"]) == (18, 18, pytest.approx(wanted))
    frame = found.sections["Scores"][-1]
    assert frame.title == "tiny-edit-ood: the 18 problems whose original passes here"
    assert frame.rows[0][0] == "base" and "n=18" in frame.rows[0][1]


def test_json_contract(comparison: Comparison) -> None:
    whole = json.loads(json.dumps(comparison.json(), allow_nan=False))
    bench = whole["models"]["RL"]["benches"]["tiny-edit-ood"]
    assert bench["n"] == 24
    assert set(bench["metrics"]["pass@1"]) >= {"value", "low", "high"}
    assert sum(bench["outcomes"].values()) == 48
    assert set(bench["temperatures"]) == {"1", "0"}
    assert (
        bench["metrics"]["pass@1"]["low"] <= bench["metrics"]["pass@1"]["value"] <= bench["metrics"]["pass@1"]["high"]
    )
    assert whole["models"]["RL"]["seeds"] == [0, 1]


def test_csv_reads_back(comparison: Comparison) -> None:
    import pandas as pd

    path = next(path for path in comparison.files if path.name == "scores.csv")
    table = pd.read_csv(path)
    cell = table[
        (table.model == "RL") & (table.metric == "pass@1") & (table.bench == "tiny-edit-ood") & (table.temperature == 1)
    ]
    assert cell.value.item() == pytest.approx((cell.seed_0.item() + cell.seed_1.item()) / 2)


def test_values_are_hand_checkable(comparison: Comparison) -> None:
    run = next(run for run in comparison.scores.runs if run.label == "SFT" and run.seed == 1)
    answers = [a for a in run.answers if a.bench == "tiny-edit-ood" and a.temperature == 1.0]
    passing = [a.excess for a in answers if a.passed and a.excess is not None]
    rows = {(r["metric"], r["model"], r["bench"], r["temperature"]): r for r in comparison.rows["scores"]}
    assert rows["pass@1", "SFT", "tiny-edit-ood", 1.0]["seeds"][1] == pytest.approx(len(passing) / 24)
    assert rows["excess_levenshtein", "SFT", "tiny-edit-ood", 1.0]["seeds"][1] == pytest.approx(
        sum(passing) / len(passing)
    )


def test_families_count_problems_not_answers(comparison: Comparison) -> None:
    row = next(r for r in comparison.rows["families"] if (r["model"], r["family"]) == ("SFT", "comparison"))
    runs = [run for run in comparison.scores.runs if run.label == "SFT"]
    passed = [a.passed for run in runs for a in run.answers if "comparison" in a.families and a.temperature == 1.0]
    assert row["n"] == 6 and len(passed) == 12
    assert row["value"] == pytest.approx(sum(passed) / 12)


def test_update_and_curves_have_a_row_a_checkpoint(comparison: Comparison) -> None:
    update = comparison.rows["update"]
    assert {(r["model"], r["seed"], r["prompts"]) for r in update} >= {("SFT", 1, "tiny-codegen")}
    assert (update[0]["gini"], update[0]["low_prob_share"], update[0]["forced_pass"]) == (0.6, 0.02, 0.25)
    curves = {(r["model"], r["seed"]): r for r in comparison.rows["curves"]}
    assert curves["OPD from RL", 0]["entropy_half_step"] < curves["RL", 0]["entropy_half_step"]
    assert curves["OPD from RL", 0]["reward_jump"] > curves["RL", 0]["reward_jump"] > curves["RL", 0]["even_rise"] / 2
    titles = [frame.title for group in comparison.sections.values() for frame in group]
    assert "Training curves" in titles and "Cost of reaching the tutor's score" in titles


def test_markdown_names_the_benches_of_the_claims(comparison: Comparison) -> None:
    text = next(path for path in comparison.files if path.name == "comparison.md").read_text()
    assert "edit: tiny-edit-ood; forgetting: tiny-codegen" in text
    assert "All other pairs: differences.csv" in text and "OPD from SFT − RL |" not in text


def test_terminal_shows_scores_claims_costs(comparison: Comparison) -> None:
    console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison.terminal())
    text = console.export_text()
    console.file.close()
    for word in ("Norm. Lev.", "Paired differences", "premise", "What it cost", "OPD from SFT"):
        assert word in text


def test_markup_in_labels_is_text_everywhere() -> None:
    frame = Frame("x", "[red]t", ("a_b", "c|d"), [["50% & <b>", "[bold]x"]], ("note_1",))
    assert r"50\% \& $<$b$>$" in to_latex(frame)
    assert r"\toprule" in to_latex(frame) and r"\bottomrule" in to_latex(frame)
    assert "| a_b | c\\|d |" in to_markdown(frame) and "&lt;b&gt;" in to_markdown(frame)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(to_rich(frame, ["[x]"]))
    assert "[bold]x" in captured.get() and "WARNING [x]" in captured.get()
    assert tex_escape("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_warnings_stand_in_every_format(comparison: Comparison) -> None:
    frame = comparison.sections["Scores"][0]
    assert "WARNING" in to_markdown(frame, ["settings differ"])
    assert "settings differ" in to_latex(frame, ["settings differ"])


def test_numbers_as_text() -> None:
    assert number(-0.0001, sign=True) == "+0.000"
    assert number(None) == number(float("nan")) == "–"
    assert p_value(0.0004) == "<\u00a00.001"
    assert [amount(v) for v in (12, 12345, 2.5e6, None)] == ["12", "12.3k", "2.5M", "–"]
    assert plain({1: (float("nan"), 2)}) == {"1": [None, 2]}


def test_embedding_cannot_leave_its_script_element() -> None:
    hostile = "</script><script>alert(1)</script><!--<script> & \u2028"
    text = pack({"x": hostile, "half": "\udc80"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(zlib.decompress(base64.b64decode(text))) == {"x": hostile, "half": "\udc80"}


def test_every_text_is_embedded_once(comparison: Comparison) -> None:
    found = browser_data(comparison.scores)
    assert len(set(found["texts"])) == len(found["texts"])
    run = comparison.scores.runs[1]
    heat = comparison.scores.headline
    first = next(a for a in run.answers if a.temperature == heat and a.sample == 0)
    at = [(found["benches"][p["bench"]], p["id"]) for p in found["problems"]].index((first.bench, first.problem_id))
    row = found["answers"][1][at]
    assert found["texts"][row[4]] == first.completion
    assert (found["outcomes"][row[0]], row[1]) == (first.outcome, pytest.approx(first.reward, abs=1e-6))


def test_report_is_one_strict_file(comparison: Comparison) -> None:
    html = comparison.html()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    assert not re.findall(r'(?:src|href)="(?!#|data:image/png)[^"]*"', html)
    assert " style=" not in html.split("<script")[0]
    assert "{{" not in html.split("<script")[0].split("</style>")[1]
    for name in ("training", "scores", "forgetting-kl", "costs", "families"):
        assert f'id="plot-{name}"' in html


def test_svg_keeps_drawing_only() -> None:
    data = b"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
    width="72pt" height="9pt">
    <defs><style>*{x:y}</style></defs><script>alert(1)</script><metadata/><a href="http://x"><path/></a>
    <g id="g1"><path id="p" style="fill: #000000; stroke: #ff0000" clip-path="url(#c)"/>
    <use xlink:href="#p" onload="x()"/>
    <text style="font: 9px 'Sans'; text-anchor: middle">&lt;b&gt;</text></g></svg>"""
    text = page_svg(data, "plot", "A caption")
    for gone in ("script", "style", "metadata", "http://x", "onload"):
        assert gone not in text
    assert 'id="plot-p"' in text and 'href="#plot-p"' in text and "url(#plot-c)" in text
    assert 'fill="currentColor"' in text and 'stroke="#ff0000"' in text and 'font-size="9"' in text
    assert "<title>A caption</title>" in text


def test_no_heavy_imports(comparison: Comparison) -> None:
    paths = [str(run.path) for run in comparison.scores.runs]
    code = (
        "import sys; from pathlib import Path; from onpol_cli.comparison.compare import compare;"
        f"c = compare([Path(p) for p in {paths!r}], {str(PAPER)!r}); c.terminal(); c.json();"
        "heavy = ('torch', 'transformers', 'vllm', 'matplotlib', 'scipy.stats', 'pandas');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_same_runs_give_the_same_bytes(comparison: Comparison) -> None:
    again = compare([run.path for run in comparison.scores.runs], PAPER)
    assert again.json() == comparison.json()


def test_committed_paper_tables_are_current(tmp_path: Path) -> None:
    for path in write_paper(tmp_path):
        assert path.read_text() == (ROOT / "results" / "paper" / path.name).read_text()
    verdicts = {(r["column"], r["left"], r["right"]): r["verdict"] for r in paper_counts()}
    assert verdicts["LiveCodeBench v6", "SFT tutor", "RL tutor"] == "depends on the overlap"
    assert verdicts["Norm. Lev.", "SFT tutor", "OPD from SFT tutor"] == "resolved"
    assert verdicts["LiveCodeBench v6", "base 0-shot", "SFT"] == "resolved"


def test_a_long_table_of_differences_keeps_its_headline_in_the_terminal():
    rows = [{"metric": metric} for metric in ("pass@1", "excess_levenshtein", "added_cc") for _ in range(SCREEN // 3)]
    assert len(rows) <= SCREEN
    assert headline_rows(rows) == (rows, "")
    rows *= 2
    kept, note = headline_rows(rows)
    assert len(kept) == 2 * len(rows) // 3 and {row["metric"] for row in kept} == set(HEADLINE)
    assert "--out" in note
