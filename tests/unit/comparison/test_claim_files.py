"""Reading and checking claims."""

from pathlib import Path

import pytest

from onpol_cli.comparison.claims import Kind, load_claims
from onpol_cli.core.errors import OnpolError

PAPER = Path(__file__).parents[3] / "conf" / "claims" / "paper.yaml"
GOOD = {"kind": "non-inferiority", "metric": "pass@1", "left": "OPD", "right": "SFT"}


def one(**changes: object) -> list[dict[str, object]]:
    """A list of one claim with one statement, changed."""
    statement = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return [{"id": "mine", "text": "t", "statements": [statement]}]


def test_paper_has_six_claims() -> None:
    claims = load_claims(PAPER)
    assert len(claims) == 6
    kinds = {statement.kind for claim in claims for statement in claim.statements}
    assert kinds == set(Kind) - {Kind.difference}


def test_default_margins() -> None:
    assert load_claims(one())[0].statements[0].margin == 0.03
    assert load_claims(one(metric="excess_levenshtein"))[0].statements[0].margin == 0.02
    assert load_claims(one(metric="forgetting"))[0].statements[0].margin == 0.03
    assert load_claims(one(kind="superiority"))[0].statements[0].margin == 0.0
    assert load_claims(one(margin=0.1))[0].statements[0].margin == 0.1


def test_composed_group_and_nothing() -> None:
    assert load_claims({"name": "mine", "claims": one()})[0].id == "mine"
    assert load_claims(None) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (one(kind="superiorty"), "Did you mean superiority"),
        (one(kind=None), "kind is missing"),
        (one(metric="pass1"), "Did you mean pass@1"),
        (one(kind="curve"), "entropy-half-step"),
        (one(left=None), "needs `left`"),
        (one(right="opd"), "compares two labels"),
        (one(margin=-1), "number >= 0"),
        (one(margin="big"), "number >= 0"),
        (one(kind="equivalence", margin=0), "margin above 0"),
        (one(kind="difference", margin=0.1), "takes no margin"),
        (one(marginn=1), "Did you mean margin"),
        (one(premise={**GOOD, "premise": GOOD}), "no premise of its own"),
        (one(premise="SFT forgets"), "must be a mapping"),
        ([{"text": "t"}], "no `id`"),
        ([{"id": "a"}], "no `statements`"),
        ([{"id": "a", "statements": "all"}], "must be a list"),
        (one() + one(), "two claims have the id"),
        ({"clams": []}, "no list `claims:`"),
        ({"claims": 3}, "must be a list"),
        (["x"], "must be a mapping"),
    ],
)
def test_mistakes_are_named(source: object, message: str) -> None:
    with pytest.raises(OnpolError, match=message.replace("(", r"\(")):
        load_claims(source)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match="No claims file"):
        load_claims(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("claims: [")
    with pytest.raises(OnpolError, match="not YAML"):
        load_claims(tmp_path / "bad.yaml")
