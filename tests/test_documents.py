"""Documents are true: README's code runs, its commands exist, generated pages are what the generator writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

from vesalius import catalog

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs" / "first" / "labels").iterdir())) == 2


def test_every_verb_of_the_readme_exists():
    verbs = set(re.findall(r"^vesalius (\w+)", README, re.M))
    known = subprocess.run([Path(sys.executable).with_name("vesalius"), "--help"], capture_output=True, text=True, check=True).stdout
    assert {"check", "train", "predict", "evaluate", "compare", "prove", "methods", "datasets"} <= verbs
    assert all(re.search(rf"\b{verb}\b", known) for verb in verbs)


def test_generated_pages_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_no_card_claims_more_than_its_proof_showed():
    """'proof': on one data set everything held, and on none did anything turn round."""
    claimed = [slug for slug, card in catalog.cards().items() if card.evidence == "proof"]
    assert claimed
    for slug in claimed:
        record = json.loads((ROOT / "proofs" / "results" / f"{slug}.json").read_text())
        measured = [r for r in record["results"].values() if "arms" in r]
        assert any(r["holds"] for r in measured), slug
        for e in (e for r in measured for e in r["expected"] if e["difference"] and e["difference"]["low"] is not None):
            d, higher, margin = e["difference"], e["direction"] == "higher", e.get("margin", 0.0)
            assert not (d["high"] < -margin if higher else d["low"] > margin), f"{slug}: {e}"
