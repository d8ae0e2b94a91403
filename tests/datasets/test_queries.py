"""queries.csv: what a row may mean, bad rows, and expressions made from label maps."""

import numpy as np
import pytest

from vesalius.core.case import IGNORE
from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.datasets import open_dataset, read_case
from vesalius.datasets.views import open_view

from .folders import picture, written

TOML = 'name = "small"\nmodality = "US"\ndims = 2\n[labels]\n"background" = 0\n"lesion" = 255\n"cyst" = 7\n"ignore" = 9\n'
CASES = "case,image:US,label:reference\na,a.png,la.png\nb,b.png,\n"


def folder(path, queries: str, toml: str = TOML):
    rng = np.random.default_rng(0)
    label = np.zeros((8, 10), np.uint8)
    label[1:4, 1:4], label[5:8, 6:9], label[0] = 255, 7, 9
    for name in "ab":
        picture(path / f"{name}.png", rng.integers(0, 255, (8, 10)).astype(np.uint8))
    picture(path / "la.png", label)
    picture(path / "mask.png", np.where(label == 7, 3, 0).astype(np.uint8))
    written(path, CASES, toml)
    (path / "queries.csv").write_text(queries)
    return path


def targets(case):
    return {q.id: None if q.target is None else np.asarray(q.target.data) for q in case.queries}


def test_a_row_means_a_class_a_value_a_file_nothing_or_is_not_known(tmp_path):
    rows = "case,id,text,label\na,,the lesion,lesion\na,x,'the bright, one',255\na,both,all of it,cyst|lesion\n"
    rows += "a,file,the cyst,mask.png\na,none,the stone,nothing\na,open,what?,\nb,m,the cyst,mask.png\n"
    data = open_dataset(folder(tmp_path, rows.replace("'", '"')))
    a, b = read_case(data, "a"), read_case(data, "b")
    label = np.asarray(a.labels["reference"].data)
    found = targets(a)
    assert list(found) == ["q1", "x", "both", "file", "none", "open"] and a.queries[1].text == "the bright, one"
    assert np.array_equal(found["q1"] == 1, label == 1) and np.array_equal(found["q1"], found["x"])
    assert np.array_equal(found["both"] == 1, label > 0) and np.array_equal(found["q1"] == IGNORE, label == IGNORE)
    assert np.array_equal(found["file"] > 0, label == 2) and not found["none"].clip(0).any() and found["open"] is None
    assert not a.rois and targets(b)["m"].sum() == 9
    hidden = read_case(data, "a", labels=False)
    assert [q.text for q in hidden.queries] == [q.text for q in a.queries] and not any(q.target for q in hidden.queries)


def test_instance_ids_are_values(tmp_path):
    toml = 'dims = 2\nmodality = "US"\n[labels]\n"background" = 0\n"lesion" = "1.."\n'
    data = open_dataset(folder(tmp_path, "case,text,label\na,the second,7\na,any,lesion\n", toml))
    case = read_case(data, "a")
    ids = np.asarray(case.labels["reference"].data)
    assert np.array_equal(targets(case)["q1"] > 0, ids == 7)
    assert np.array_equal(targets(case)["q2"] > 0, ids > 0)


def test_other_rows_other_data(tmp_path):
    """Caches of prepared cases go by the manifest's reader."""
    one = open_dataset(folder(tmp_path, "case,text,label\na,x,lesion\n"))
    two = open_dataset(folder(tmp_path, "case,text,label\na,x,cyst\n"))
    assert repr(one.built_in) != repr(two.built_in)
    assert repr(one.built_in) == repr(open_dataset(folder(tmp_path, "case,text,label\na,x,lesion\n")).built_in)


@pytest.mark.parametrize(
    ("queries", "says"),
    [
        ("case,text,lable\na,x,lesion\n", "unknown column 'lable'"),
        ("case,label\na,lesion\n", "no column 'text'"),
        ("case,text\nc,x\n", "line 2: unknown case 'c'"),
        ("case,text,label\na,,lesion\n", "without words"),
        ("case,id,text\na,x,one\na,x,two\n", "two expressions of the id 'x'"),
        ("case,text,label\na,x,lesions\n", "did you mean 'lesion'|Did you mean 'lesion'"),
        ("case,text,label\na,x,3\n", "no label has the value 3"),
        ("case,id,text\na,x/y,one\n", "could not name a file"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path, queries, says):
    with pytest.raises(DataError, match=says):
        open_dataset(folder(tmp_path, queries))


def test_bad_targets_are_refused_when_they_are_read(tmp_path):
    data = open_dataset(folder(tmp_path, "case,text,label\nb,x,lesion\na,y,small.png\n"))
    with pytest.raises(DataError, match="the case has no label map"):
        read_case(data, "b")
    with pytest.raises(DataError, match="small.png"):
        read_case(data, "a")
    picture(tmp_path / "small.png", np.ones((4, 4), np.uint8))
    with pytest.raises(GeometryError, match="grid"):
        read_case(data, "a")


def test_templated_expressions_of_a_folder(tmp_path):
    path = folder(tmp_path, "case,text\na,x\n")
    (path / "queries.csv").unlink()
    data = open_dataset(f"{path}?queries=templated&number=6")
    a = read_case(data, "a")
    assert len(a.queries) == 6 and not read_case(data, "b").queries and read_case(data, "a").queries[0].text == a.queries[0].text
    for q in a.queries:
        mask = np.asarray(q.target.data) > 0
        assert mask.any() != q.id.startswith("nothing") and (not mask.any() or np.asarray(a.labels["reference"].data)[mask].min() > 0)
    with pytest.raises(UsageError, match="no such view"):
        open_view(f"{path}?queries=made", open_dataset)
    with pytest.raises(UsageError, match="made from label maps"):
        open_dataset(f"{path}?queries=templated&number=0")


def test_kinds_of_templated_expressions(tmp_path):
    data = open_dataset("phantom:referring?cases=4&kinds=place|contrast&most=2&expressions=5")
    for ref in data.cases:
        case = read_case(data, ref.id)
        assert {q.id.partition("-")[0] for q in case.queries} <= {"place", "contrast", "nothing"} and case.table["shapes"] == 2
    with pytest.raises(UsageError, match="kind of expression 'places'"):
        open_dataset("phantom:referring?kinds=places")
