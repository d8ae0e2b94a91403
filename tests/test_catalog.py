"""The catalogue: pure data, fast, and everything it names exists."""

import subprocess
import sys

import pytest

from vesalius import catalog
from vesalius.core.errors import UsageError
from vesalius.core.manifest import Manifest
from vesalius.core.plan import Plan


def test_listing_needs_no_torch():
    code = "import vesalius.catalog as c, sys; c.cards(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[0] == "False"


@pytest.mark.parametrize("slug", catalog.cards())
def test_card_is_true(slug):
    """Homes load, options are typed, the paper is named, evidence above 'contract' has its generated file."""
    from pathlib import Path

    card = catalog.get(slug)
    for home in card.homes:
        assert catalog.load(home) is not None
    assert card.paper and card.url and card.claim and card.takes and card.gives and card.dims
    for option in catalog.options(slug).values():
        assert option["type"] is not None
    if card.evidence in ("proof", "benchmark"):
        result = Path(__file__).resolve().parents[1] / "proofs" / "results" / f"{slug}.json"
        assert result.exists(), f"{slug} claims '{card.evidence}' without a result file"


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="[Dd]id you mean 'unet'"):
        catalog.get("unett")
    with pytest.raises(UsageError, match="[Dd]id you mean 'lr'"):
        catalog.coerce("unet", {"lrr": "1"})
    with pytest.raises(UsageError, match="wrong type"):
        catalog.coerce("unet", {"lr": "fast"})
    with pytest.raises(UsageError, match="wrong type"):
        catalog.coerce("unet", {"encoder": "resnet"})


def test_options_become_typed():
    assert catalog.coerce("unet", {"lr": "0.01", "gates": "true", "encoder": "residual", "deep_supervision": "none"}) == {
        "lr": 0.01,
        "gates": True,
        "encoder": "residual",
        "deep_supervision": None,
    }


def test_a_2d_method_on_3d_data_is_refused():
    manifest = Manifest("x", ".", 3, ("a",), {"background": 0, "b": 1}, ())
    with pytest.raises(UsageError, match="2D"):
        catalog.build("saliency-acm", Plan(3), manifest)


def test_a_digest_tells_code_from_words_about_it():
    source = '"""Words."""\n\nX = 1  # a unit\n\n\ndef f(a):\n    """More words."""\n    return a + X\n'
    assert catalog.stripped(source) == "X = 1\ndef f(a):\n    return a + X"
    assert catalog.stripped(source) == catalog.stripped("X = 1\n\ndef f(a):\n    # other words\n    return a + X\n")
    assert catalog.stripped(source) != catalog.stripped(source.replace("a + X", "a - X"))
    found = {slug: catalog.digest(slug) for slug in catalog.cards()}
    assert found == {slug: catalog.digest(slug) for slug in found} and len(set(found.values())) == len(found), "each has its own"
