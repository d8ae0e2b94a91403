"""A folder of five hundred pictures with transparency says so once, not five hundred times."""

import warnings

import pytest

from vesalius.io.notes import Summary, VesaliusNote, note


def test_the_first_of_each_is_shown_and_the_rest_counted(capsys):
    with pytest.warns(UserWarning, match="not ours") as others:
        warnings.simplefilter("always")
        with Summary():
            for k in range(5):
                note("the picture's transparency was left out", f"a{k}.png")
            note("another thing", "b.png")
            warnings.warn("not ours", UserWarning, stacklevel=1)
    shown = capsys.readouterr().err
    assert shown.count("a0.png") == 1 and "a1.png" not in shown and "b.png: another thing" in shown
    assert "the picture's transparency was left out (4 more)" in shown and "another thing (" not in shown
    assert len(others) == 1


def test_a_note_says_where():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        note("odd", "c.nii.gz")
    assert str(caught[0].message) == "c.nii.gz: odd" and caught[0].category is VesaliusNote
