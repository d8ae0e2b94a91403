"""BI-RADS BERT: what each part sees, the greedy labelling, the learnt vocabulary in the state, and texts that cannot be read."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Case, Condition
from vesalius.core.errors import DataError, UsageError
from vesalius.core.manifest import CaseRef, Manifest
from vesalius.datasets import open_dataset
from vesalius.datasets.phantoms.report import open_reports
from vesalius.engine import api, checkpoint
from vesalius.engine.fit import Interrupted, Training
from vesalius.engine.infer import infer
from vesalius.methods.reports import CARDS
from vesalius.methods.reports.birads_bert import BiradsBERT, SectionField, SentenceSection, each_sentence
from vesalius.networks.text import TextEncoder, WordPieces, sentences

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"width": 16, "words": 300, "lr": 1e-2, "pretrain": 0.1}
FEW = {"workers": 0, "batch": 8, "threads": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small one, with the density read from the findings and the purpose from the whole report."""
    folder = tmp_path_factory.mktemp("birads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VESALIUS_CACHE", str(folder / "cache"))
        patch.setattr("os.fsync", lambda _: None)  # hundreds of small files
        data = open_reports(cases=(12, 0, 2))
        options = {**SMALL, "fields": ("density:findings", "purpose")}
        yield api.train(BiradsBERT, data, folder / "run", iterations=150, options=options, plan_overrides=FEW)


def answer(trained, text: dict, **table):
    return infer(trained.method, Case("x", text=text, table=table), trained.plan)


def test_training_sentences_know_what_stands_before_them():
    case = Case("a", "p", text={"report": "One. Two. Three.", "hx": "One. Two.", "findings": "Three."})
    found = list(each_sentence(case))
    assert [c.text["sentence"] for c in found] == ["One.", "Two.", "Three."]
    assert [(c.table["section"], c.table["before"], c.table["number"], c.table["of"]) for c in found] == [
        ("hx", None, 0, 3), ("hx", "hx", 1, 3), ("findings", "hx", 2, 3),
    ]  # fmt: skip
    assert [c.table["section"] for c in each_sentence(case.with_(text={"hx": None, "findings": None}))] == [None] * 3


def section(aux: bool, levels=("hx", "findings", "dx")) -> SentenceSection:
    torch.manual_seed(0)
    words = WordPieces.learn(["one two three four"] * 2, 60)
    said = {"section": {"kind": "nominal", "levels": list(levels)}}
    data = Manifest("m", Path("."), 0, (), {}, (), targets=said)
    plan = api.make_plan(data, None)
    part = SentenceSection(plan, data, TextEncoder(60, width=16), words, 8, aux=aux, lr=1e-3, weight_decay=0.0)
    torch.nn.init.normal_(part.head.weight)
    return part.eval()


def test_without_auxiliary_data_it_is_a_plain_text_classifier():
    part = section(aux=False)
    ids = part.ids("one two")
    torch.testing.assert_close(part(None, Condition({"ids": ids}))["section"], part.head(part.encoder.pooled(ids)))
    there = dict(part.label(["one", "two", "three"]) and [(line, part.label([line])[0][0]) for line in ("one", "two", "three")])
    assert [own for own, _ in part.label(["three", "one", "two"])] == [there["three"], there["one"], there["two"]]


def test_labels_are_given_one_after_the_other():
    """Each answer is that of the forward told the answer before; the first is told -1."""
    part, lines, before = section(aux=True), ["one two", "three", "four four", "one"], None
    for n, (line, (own, p)) in enumerate(zip(lines, part.label(lines), strict=True)):
        case = Case("s", text={"sentence": line}, table={"before": before, "number": n, "of": len(lines)})
        condition = part.condition(case, None)
        assert condition.values["aux"].tolist() == [[part.levels.index(before) if before else -1, n, 4]]
        chances = part(None, condition)["section"].softmax(1)[0]
        assert own == part.levels[int(chances.argmax())] and p == pytest.approx(float(chances.max().detach()), abs=1e-5)
        before = own


def test_order_counts_with_auxiliary_data():
    part = section(aux=True)
    lines = ["one", "two", "three", "four", "one two", "three four"]
    chances = {line: p for line, (_, p) in zip(lines, part.label(lines), strict=True)}
    turned = {line: p for line, (_, p) in zip(lines[::-1], part.label(lines[::-1]), strict=True)}
    assert any(abs(chances[line] - turned[line]) > 1e-6 for line in lines)


def test_a_field_never_sees_another_section():
    words = WordPieces.learn(["one two three"] * 2, 60)
    data = Manifest("m", Path("."), 0, (), {}, (), targets={"f": {"kind": "nominal", "levels": ["a", "b"]}})
    part = SectionField(api.make_plan(data, None), data, TextEncoder(60, width=8), words, 16, "f", ("hx",), lr=1e-3, weight_decay=0.0)
    ids = lambda **text: part.condition(Case("c", text=text), None).values["ids"]
    assert torch.equal(ids(hx="one", findings="two", report="one two"), ids(hx="one", findings="three", report="x"))
    part.sections = ()
    assert torch.equal(ids(hx="one", findings="two"), ids(report="one two"))


def test_sections_hold_every_sentence_once_and_fields_are_levels(trained):
    case = trained.manifest.built_in(trained.manifest[trained.manifest.where("test")[0]])
    found = infer(trained.method, case, trained.plan)
    given = sentences(case.text["report"])
    assert sorted(line for t in found.text.values() for line in sentences(t)) == sorted(given)
    assert sum(found.table["purpose"].values()) == pytest.approx(1, abs=1e-5)
    assert set(found.table["purpose"]) == {"screening", "diagnostic", "follow-up"}
    given = infer(trained.method, Case("s", text={"findings": case.text["findings"]}), trained.plan)
    assert given.text == {"findings": case.text["findings"]} and set(given.table) == {"density", "purpose"}


def test_it_learns_the_sections(trained):
    right = []
    for i in trained.manifest.where("train"):
        case = trained.manifest.built_in(trained.manifest[i])
        truth = [k for k, t in case.text.items() if k != "report" for _ in sentences(t)]
        right += [own == there for (own, _), there in zip(trained.method.cut(sentences(case.text["report"])), truth, strict=True)]
    assert np.mean(right) > 0.4, np.mean(right)  # the most frequent section has a fifth


def test_texts_that_cannot_be_read(trained):
    with pytest.raises(DataError, match="no report to read"):
        answer(trained, {"report": "  \n "})
    with pytest.raises(DataError, match="no report to read"):
        answer(trained, {})
    found = answer(trained, {"hx": "Routine screening."})
    assert "density" not in found.table and any("'density' has no answer" in n for n in found.notes)
    strange = answer(trained, {"report": "Lorem ipsum dolor."})
    assert len(strange.text) == 1 and "Lorem ipsum dolor." in strange.text.values()


def test_saved_and_opened_without_the_data_it_says_the_same(trained):
    tensors, facts = checkpoint.method_tensors(trained.method)
    bare = replace(trained.manifest, cases=(), targets={})
    other = BiradsBERT(trained.plan, bare, fields=("density:findings", "purpose"), **SMALL)
    checkpoint.load_method(other, tensors, facts, Path("x"))
    case = trained.manifest.built_in(trained.manifest[trained.manifest.where("test")[0]])
    a, b = infer(trained.method, case, trained.plan), infer(other, case, trained.plan)
    assert a.text == b.text and a.table == b.table
    assert facts["words"][:2] == ["[PAD]", "[UNK]"] and facts["sections"][0] == "title"


def rows(**text) -> Manifest:
    cases = tuple(CaseRef(f"c{i}", f"c{i}", "train", text=dict(text), table={"kind": "ab"[i % 2], "one": "x"}) for i in range(4))
    return Manifest("m", Path("."), 0, (), {}, cases)


@pytest.mark.parametrize(
    ("data", "fields", "error", "match"),
    [
        (rows(), ("kind",), DataError, "no training case has a text"),
        (rows(report="One."), (), DataError, "nothing to learn"),
        (rows(report="One."), ("kinds",), UsageError, "Did you mean 'kind'"),
        (rows(report="One."), ("kind:findings",), UsageError, "no training case has the section"),
        (rows(report="One."), ("one",), DataError, "fewer than two values"),
        (rows(report="One."), ("kind:",), UsageError, "a field is a column"),
    ],
)
def test_what_cannot_be_learnt_is_said(data, fields, error, match, tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(error, match=match):
        api.train(BiradsBERT, data, tmp_path / "run", iterations=3, options={"fields": fields, **SMALL}, plan_overrides=FEW)


def test_real_reports_train_a_field_without_sections(tmp_path, monkeypatch):
    folder = ROOT.parent / "shared/data/2d/breast_reports"
    if not folder.is_dir():
        pytest.skip("the shared data are not on this machine")
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    data = open_dataset(folder)
    few = data.only([*data.where("train")[:12], *data.where("test")[:1]])
    done = api.train(BiradsBERT, few, tmp_path / "run", iterations=9, options={"fields": ("side",), **SMALL}, plan_overrides=FEW)
    found = infer(done.method, api.reader(few)(few.where("test")[0]), done.plan)
    assert not found.text and sum(found.table["side"].values()) == pytest.approx(1, abs=1e-5)


def test_the_proof_measures_both_claims(trained):
    names = runpy.run_path(str(ROOT / "proofs/reports/birads_bert.py"))
    case = trained.manifest.built_in(trained.manifest[trained.manifest.where("test")[0]])
    found = dict(names["rows_of"](trained, case))
    assert 0 <= found["section accuracy"] <= 1 and found["field accuracy"] in (0, 0.5, 1)
    if not (ROOT.parent / "shared/data/2d/iu_xray_reports").is_dir():
        pytest.skip("the shared data are not on this machine")
    data, where = names["reports"](open_dataset(ROOT.parent / "shared/data/2d/iu_xray_reports"))
    assert {c.table["normal"] for c in data.cases} == {"yes", "no"} and where == {"normal": "impression"}


def test_a_run_is_opened_from_its_folder_alone_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "cards", lambda: {c.slug: c for c in CARDS})
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda _: None)
    data = open_reports(cases=(8, 0, 1))
    train = lambda name, **more: api.train(
        "birads-bert", data, tmp_path / name, iterations=12, options={**SMALL, "fields": "density:findings"}, plan_overrides=FEW, **more
    )  # fmt: skip
    whole = train("whole")
    case = data.built_in(data[data.where("test")[0]])
    expected = infer(whole.method, case, whole.plan)
    again = api.open_run(tmp_path / "whole")
    assert infer(again.method, case, again.plan).table == expected.table
    given, calls = Training.train, []

    def stops(self, method, *args, **more):
        if more["name"] == "section" and not calls:
            calls.append(1)
            raise Interrupted("stopped before the sections")
        return given(self, method, *args, **more)

    monkeypatch.setattr(Training, "train", stops)
    with pytest.raises(Interrupted):
        train("cut")
    resumed = train("cut", resume=True)
    assert infer(resumed.method, case, resumed.plan).table == expected.table


def test_text_files_are_read_as_reports(trained, tmp_path):
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "one.txt").write_text("MAMMOGRAM BOTH BREASTS. The breasts are extremely dense.", encoding="utf-8")
    (folder / "notes.md").write_text("left alone")
    written = api.predict(trained, folder, tmp_path / "out")
    assert [p.name for p in written] == ["one.json"] and "text" in json.loads(written[0].read_text())
    (folder / "two.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="this text cannot be read"):
        api.predict(trained, folder / "two.txt", tmp_path / "out")
    with pytest.raises(DataError, match="reads texts"):
        api.predict(trained, folder / "notes.md", tmp_path / "out")
    (folder / "three.txt").write_text(" \n")
    with pytest.raises(DataError, match="no report to read"):
        api.predict(trained, folder / "three.txt", tmp_path / "out3")
