"""SPOCKMIP: the paper's invariants of the projections, with a volume's projection placed by the patch's pose."""

import numpy as np
import pytest
import torch

from vesalius.core.case import Case, Image, LabelMap
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.plan import Plan
from vesalius.objectives.focal_tversky import focal_tversky
from vesalius.objectives.spockmip import SPOCKMIP, project
from vesalius.ops.augment import pose_at
from vesalius.ops.warp import read_patch

SURE = 20.0


def tree(seed: int = 0, shape=(10, 12, 14), classes: int = 1) -> np.ndarray:
    """Thin random walks (classes, *shape) bool."""
    rng, out = np.random.default_rng(seed), np.zeros((classes, *shape), bool)
    for k in range(classes):
        at = rng.integers(0, shape)
        for _ in range(40):
            out[(k, *at)] = True
            at = np.clip(at + rng.integers(-1, 2, 3), 0, np.array(shape) - 1)
    return out


def target_of(objective: SPOCKMIP, masks: np.ndarray, pose: np.ndarray | None = None, size=None) -> dict[str, torch.Tensor]:
    """Masks and projections as a patch at ``pose`` holds them."""
    pose, size = np.eye(4) if pose is None else pose, size or masks.shape[1:]
    grid = Geometry.of(masks.shape[1:], 1.0)
    case = Case("a", images={"TOF": Image(np.zeros((1, *masks.shape[1:])), grid)}, labels={"reference": LabelMap(masks[0] * 1, grid)})
    maps = {k: read_patch(np.asarray(v.data, np.float32), size, pose) for k, v in objective.targets(case, masks, Plan(3)).items()}
    maps["masks"] = read_patch(masks.astype(np.uint8), size, pose, order=0)
    return {k: torch.from_numpy(v)[None] for k, v in maps.items()} | {"to_case": torch.from_numpy(pose)[None]}


def logits(masks) -> torch.Tensor:
    return SURE * (2 * torch.as_tensor(np.asarray(masks)).float() - 1)


def mips(objective: SPOCKMIP, p: torch.Tensor, target: dict) -> torch.Tensor:
    """The projections' part of the loss, by difference."""
    whole = objective(p, target)
    volume = (1 - objective.mip_weight) * focal_tversky(p.sigmoid(), target["masks"].float(), **objective.tversky)
    return (whole - volume) / objective.mip_weight


@pytest.mark.parametrize("options", [{}, {"axes": "z"}, {"target": "volume"}])
def test_the_label_itself_has_no_loss(options):
    objective, masks = SPOCKMIP(**options), tree(classes=2)
    assert objective(logits(masks)[None], target_of(objective, masks)) < 1e-3


def test_the_loss_by_hand():
    """One class, z: 0.7 x that of the volume + 0.3 x that of the projection."""
    objective, masks = SPOCKMIP(axes="z"), tree()
    torch.manual_seed(0)
    p = torch.randn(1, 1, *masks.shape[1:])
    flat = torch.from_numpy(masks.any(3))[None].float()
    both = 0.7 * focal_tversky(p.sigmoid(), torch.from_numpy(masks)[None].float()) + 0.3 * focal_tversky(p.sigmoid().amax(4), flat)
    assert torch.isclose(objective(p, target_of(objective, masks)), both)


def test_only_the_brightest_voxel_of_a_ray_has_a_gradient():
    p = torch.rand(2, 5, 6, 7, requires_grad=True)
    project(p, 3).sum().backward()
    assert (p.grad.sum(3) == 1).all() and ((p.grad > 0) == (p == p.amax(3, keepdim=True))).all()
    tied = torch.zeros(1, 2, 2, 4, requires_grad=True)
    project(tied, 3).sum().backward()
    assert (tied.grad.sum(3) == 1).all() and ((tied.grad == 1) | (tied.grad == 0)).all()  # ties do not share


def test_slices_of_the_answer_may_change_places_for_the_projection_alone():
    objective, masks = SPOCKMIP(axes="z"), tree()
    target = target_of(objective, masks)
    torch.manual_seed(1)
    p = torch.randn(1, 1, *masks.shape[1:]) + logits(masks) / 5
    other = p[..., torch.randperm(p.shape[-1])]
    assert torch.isclose(mips(objective, p, target), mips(objective, other, target), atol=1e-5)
    assert not torch.isclose(focal_tversky(p.sigmoid(), target["masks"].float()), focal_tversky(other.sigmoid(), target["masks"].float()))


def test_a_gap_that_z_does_not_see_is_seen_from_the_side():
    masks = np.zeros((1, 12, 12, 12), bool)
    masks[0, :, 6, 3] = True  # a vessel along x with a gap ...
    masks[0, 5, 6, 9] = True  # ... that another one covers along z
    broken = masks.copy()
    broken[0, 5, 6, 3] = False
    seen = {}
    for axes in ("z", "xyz"):
        objective = SPOCKMIP(axes=axes, mip_weight=0.999)
        target = target_of(objective, masks)
        seen[axes] = mips(objective, logits(broken)[None], target) - mips(objective, logits(masks)[None], target)
    assert abs(seen["z"]) < 1e-5 and seen["xyz"] > 0.05


def test_volume_and_patch_ask_for_the_same_when_the_patch_is_the_volume():
    masks = tree(3, classes=2)
    torch.manual_seed(2)
    p = torch.randn(1, 2, *masks.shape[1:])
    whole, part = SPOCKMIP(target="volume"), SPOCKMIP(target="patch")
    assert torch.isclose(whole(p, target_of(whole, masks)), part(p, target_of(part, masks)))


def poses():
    """A part of the volume: as it is, mirrored, and turned by a quarter in each plane; one that hangs over the edge."""
    size = (6, 6, 6)
    yield pose_at((5, 6, 7), size), size
    yield pose_at((2, 6, 12), size), size
    for a, b in ((0, 1), (0, 2), (1, 2)):
        turn = np.eye(4)
        turn[[a, b], [a, b]] = 0
        turn[a, b], turn[b, a] = -1, 1
        flip = np.diag([-1.0, 1, 1, 1])
        about = np.eye(4)
        linear = (flip @ turn)[:3, :3]
        about[:3, :3], about[:3, 3] = linear, 2.5 - linear @ np.full(3, 2.5)
        yield pose_at((5, 6, 7), size) @ about, size


@pytest.mark.parametrize("pose, size", poses())
def test_a_patch_is_asked_for_the_volumes_projection_over_its_footprint(pose, size):
    """Brute force: for every ray of the patch, the whole volume's voxels on it."""
    masks, objective = tree(5), SPOCKMIP(target="volume", mip_weight=0.999)
    target = target_of(objective, masks, pose, size)
    asked = []
    for a in range(3):
        ray = int(np.abs(pose[a, :3]).argmax())
        expected = np.zeros(size)
        for i in np.ndindex(size):
            j = np.rint(pose @ [*i, 1])[:3].astype(int)
            if all(0 <= n < m for n, m in zip(j, masks.shape[1:])):
                line = [slice(None) if b == a else int(j[b]) for b in range(3)]
                expected[i] = masks[(0, *line)].any()
        asked.append((ray, torch.from_numpy(expected.max(ray)).float()))
    torch.manual_seed(3)
    p = torch.randn(1, 1, *size)
    by_hand = sum(focal_tversky(p.sigmoid()[0].amax(1 + ray)[None], flat[None, None]) for ray, flat in asked)
    assert torch.isclose(mips(objective, p, target), by_hand, atol=1e-3)


def test_a_patch_is_not_asked_for_vessels_that_run_outside_it():
    """Two vessels along x, one above the other; a patch that holds the lower one and answers it rightly has nothing left to learn."""
    masks = np.zeros((1, 8, 8, 12), bool)
    masks[0, :, 2, 2] = masks[0, :, 6, 9] = True
    pose, size = pose_at((4, 4, 3), (8, 8, 6)), (8, 8, 6)
    for target, least, most in (("patch", 0.0, 1e-3), ("volume", 0.1, 3.0)):
        objective = SPOCKMIP(target=target)
        asked = target_of(objective, masks, pose, size)
        assert least <= objective(logits(asked["masks"]), asked) < most
    assert SPOCKMIP().target == "patch"


def test_what_nobody_spoke_for_casts_no_shadow():
    masks, objective = tree(6), SPOCKMIP(target="patch")
    target, weight = target_of(objective, masks), torch.ones(1, *masks.shape[1:])
    weight[:, :4] = 0
    p = logits(masks)[None].clone()
    spoiled = p.clone()
    spoiled[:, :, :4] *= -1
    assert torch.isclose(objective(p, target, weight=weight), objective(spoiled, target, weight=weight))


def test_without_projections_nothing_is_kept():
    objective, masks = SPOCKMIP(target="volume", mip_weight=0.0), tree()
    target = target_of(objective, masks)
    assert set(target) == {"masks", "to_case"} and objective.preparation != SPOCKMIP(target="volume").preparation
    p = torch.randn(1, 1, *masks.shape[1:])
    assert objective(p, target) == focal_tversky(p.sigmoid(), target["masks"].float())
    with pytest.raises(UsageError, match="share"):
        SPOCKMIP(mip_weight=2.0)
