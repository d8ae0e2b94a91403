"""Reports by section."""

import pytest

from vesalius.core.errors import UsageError
from vesalius.ops.sections import field_of, in_order, passage


def test_sections_are_numbered_along_the_report():
    assert in_order([["b", "c"], ["a", "b", "d"], ["c", "d"], ["a"]]) == ("a", "b", "c", "d")


def test_a_passage_is_made_of_the_sections_that_are_there():
    text = {"report": "all of it", "findings": "a mass", "history": " "}
    assert passage(text, ("history", "findings")) == "a mass" and passage(text, ()) == "all of it" and passage(text, ("plan",)) == ""


def test_a_field_names_a_column_and_where_it_is_read():
    assert field_of("density") == ("density", ()) and field_of(" birads : findings + impression ") == ("birads", ("findings", "impression"))
    for wrong in (":findings", "density:", ""):
        with pytest.raises(UsageError, match="a field is a column"):
            field_of(wrong)
