"""The laws of cards that answer with texts and columns of the table instead of label maps."""

import json

import pytest

from vesalius import catalog
from vesalius.core.manifest import Split
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.infer import infer

SLUGS = [slug for slug, card in catalog.cards().items() if not {"labels", "probability", "displacement"} & set(card.gives)]


@pytest.fixture(scope="module", params=SLUGS)
def trained(request, tmp_path_factory):
    card = catalog.get(request.param)
    manifest = open_dataset(f"phantom:{card.phantom}")
    split = manifest.split()
    few = Split(split.train[:12], (), split.test[:2])
    folder = tmp_path_factory.mktemp(card.slug) / "run"
    plan = {"workers": 0, "batch": 4, "precision": "32", "threads": 1}
    return api.train(card.slug, manifest, folder, options=dict(card.small), iterations=6, plan_overrides=plan, split=few)


def answered(run, case):
    answer = infer(run.method, case, run.plan)
    return dict(answer.text), dict(answer.table)


def test_a_run_opened_again_answers_the_same(trained):
    case = api.reader(trained.manifest)(trained.split.test[0])
    text, table = answered(trained, case)
    assert text or table
    assert (text, table) == answered(api.open_run(trained.folder), case)


def test_it_never_looks_at_the_answers(trained):
    case = api.reader(trained.manifest)(trained.split.test[0])
    targets = set(trained.manifest.targets) or set(answered(trained, case)[1])
    poisoned = case.with_(labels=dict.fromkeys(case.labels), table={k: None for k in case.table if k in targets})
    assert answered(trained, case) == answered(trained, poisoned)


def test_predict_writes_one_json_a_case(trained, tmp_path):
    made = api.predict(trained, trained.manifest.only(trained.split.test), tmp_path / "out")
    assert [p.suffix for p in made] == [".json"] * 2
    assert {"text", "table", "notes"} == set(json.loads(made[0].read_text()))
