"""Separation by votes, its targets under any pose, decoders that may be left out, and a slide that is never read whole."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from vesalius.core.case import Batch, Case, Image, LabelMap, Points
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.lazy import Lazy
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock
from vesalius.core.plan import Plan
from vesalius.datasets.phantoms.slide import PHANTOMS
from vesalius.inferers.tiles import Tile
from vesalius.methods.pathology.slide_segmenter import SlideSegmenter, sections, ways
from vesalius.ops.augment import PRESETS
from vesalius.ops.strokes import with_stroke
from vesalius.ops.votes import Votes, nearest

CLASSES = ("background", "tissue", "pen")
SMALL = {"filters": 4, "factors": (2, 4), "distance_factor": 20.0, "pixels_per_bin": 2, "filter_size": 7, "least": 0.05}


def manifest(classes=CLASSES) -> Manifest:
    return Manifest("slides", None, 2, ("RGB",), {n: k for k, n in enumerate(classes)}, ())


def method(classes=CLASSES, seed=0, **options) -> SlideSegmenter:
    plan = Plan(2, ("RGB",), 3, classes, patch=(64, 64), augmentation=PRESETS["full"], mirror_axes=(0, 1))
    torch.manual_seed(seed)
    return SlideSegmenter(plan, manifest(classes), **{**SMALL, **options}).eval()


def torn(n: int = 4, seed: int = 0, shape=(120, 150)) -> np.ndarray:
    """(*s) ids 1..n: ellipses in a grid, each cut into up to four pieces by gaps wider than those between the ellipses."""
    rng = np.random.default_rng(seed)
    r, c = np.mgrid[: shape[0], : shape[1]]
    ids = np.zeros(shape, int)
    columns = -(-n // 2)
    for k in range(n):
        y, x = (k // columns + 0.5) * shape[0] / 2, (k % columns + 0.5) * shape[1] / columns
        one = ((r - y) / (shape[0] / 4 - 2)) ** 2 + ((c - x) / (shape[1] / columns / 2 - 2)) ** 2 < 1
        if rng.random() < 0.8:
            one &= np.abs(c - x) > 3
        if rng.random() < 0.5:
            one &= np.abs(r - y - 4) > 3
        ids[one] = k + 1
    return ids


def case_of(ids: np.ndarray, how: str = "points") -> Case:
    grid = Geometry.of(ids.shape, 0.008)
    image = Image(np.where(ids > 0, 0.5, 1.0)[None].repeat(3, 0).astype(np.float32), grid)
    if how == "ids":
        label = LabelMap(ids.astype(np.int32), grid, ("background", "section"), instances=True)
        return Case("a", images={"RGB": image}, labels={"reference": label})
    points = {}
    for k in range(1, ids.max() + 1):
        parts, m = ndimage.label(ids == k, np.ones((3, 3)))
        spots = [np.unravel_index(np.argmax(ndimage.distance_transform_edt(parts == j)), ids.shape) for j in range(1, m + 1)]
        points[f"section {k}"] = Points(grid.to_world(np.array(spots)))
    return Case("a", images={"RGB": image}, labels={"reference": LabelMap((ids > 0).astype(np.int16), grid, CLASSES)}, points=points)


def perfect(me: SlideSegmenter, ids: np.ndarray, side: int = 50, pen: np.ndarray | None = None) -> list[Tile]:
    """What a network without error would answer, in tiles."""
    (target,) = me.targets(case_of(ids)).values()
    out = []
    place = np.stack(np.mgrid[: ids.shape[0], : ids.shape[1]])
    way = (place - target.data[1:]) / me.factor
    logits = np.stack([ids > 0, np.zeros_like(ids, bool) if pen is None else pen]) * 20.0 - 10
    for i in range(0, ids.shape[0], side):
        for j in range(0, ids.shape[1], side):
            at = (slice(None), slice(i, i + side), slice(j, j + side))
            out.append(Tile((i, j), {"logits": logits[at], "way": way[at].astype(np.float32)}))
    return out


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(a)) == len(np.unique(b))


class TestSeparation:
    @pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_true_ways_give_the_true_sections(self, n, seed):
        """Exactly n, whatever the tiling; pieces of one section join; disjoint, and together the tissue."""
        ids, me = torn(n, seed), method()
        for side in (50, 200):
            found = me.read_out(perfect(me, ids, side), case_of(ids))
            got = np.asarray(found.instances.data)
            assert found.table == {"sections": n} and same_partition(got, ids)
            assert np.array_equal(got > 0, np.asarray(found.label.data) == 1)

    def test_components_would_not(self):
        ids = torn(4, 0)
        assert ndimage.label(ids > 0)[1] > 4

    def test_shifting_the_image_shifts_the_centroids(self):
        ids, me = np.pad(torn(4), 20), method()
        found = []
        for shift in ((0, 0), (7, -11)):
            votes = Votes(ids.shape, me.bin)
            moved = np.roll(ids, shift, (0, 1))
            for tile in perfect(me, moved, 300):
                place = np.stack(np.mgrid[tile.at]) - me.factor * tile.maps["way"]
                votes.add(place[:, moved > 0])
            found.append(votes.centres(**me.peaks))
        np.testing.assert_allclose(sorted(map(tuple, found[1])), sorted(map(tuple, found[0] + (7, -11))), atol=1e-3)

    def test_noise_in_the_votes(self):
        rng, truth = np.random.default_rng(0), np.array([[40.0, 30], [40, 80], [90, 60]])
        votes = Votes((128, 128), 2)
        cast = np.concatenate([c + rng.normal(0, 4, (2000, 2)) for c in truth]).T
        votes.add(cast)
        centres = votes.centres(sigma=2, size=9, percentile=90, least=0.1)
        assert len(centres) == 3
        order = nearest(truth.T, centres)
        assert sorted(order) == [1, 2, 3] and np.abs(centres[order - 1] - truth).max() < 2
        assert (nearest(cast, centres).reshape(3, -1) == order[:, None]).mean() > 0.99

    def test_pen_lies_above_and_nothing_is_nothing(self):
        ids, me = torn(2), method()
        pen = np.zeros(ids.shape, bool)
        pen[50:60] = True
        found = me.read_out(perfect(me, ids, pen=pen), case_of(ids))
        assert (np.asarray(found.label.data)[50:60] == 2).all() and (np.asarray(found.instances.data)[50:60] == 0).all()
        empty = me.read_out([], case_of(ids))
        assert empty.table == {"sections": 0} and not np.asarray(empty.label.data).any() and not np.asarray(empty.instances.data).any()


class TestTargets:
    @pytest.mark.parametrize("how", ["points", "ids"])
    def test_sections_of_a_case(self, how):
        ids = torn(5, 3)
        assert same_partition(sections(case_of(ids, how)), ids)

    def test_without_points_every_component_is_a_section(self):
        ids = torn(3, 1)
        case = case_of(ids).with_(points={f"section {k}": None for k in range(1, 4)})
        assert sections(case).max() == ndimage.label(ids > 0, np.ones((3, 3)))[1]

    def test_ways_follow_the_patch(self):
        """Turned, mirrored and enlarged patches: pixel - way is the centroid's place in the patch."""
        ids = torn(2)
        centroid = torch.from_numpy(next(iter(method().targets(case_of(ids)).values())).data)
        angle, zoom = 0.7, 0.8
        pose = torch.tensor(
            [[zoom * np.cos(angle), np.sin(angle) * zoom, 31.0], [zoom * np.sin(angle), -np.cos(angle) * zoom, 60.0], [0, 0, 1]]
        )
        at = torch.stack(torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij"))
        source = torch.einsum("ij,jhw->ihw", pose[:2, :2].float(), at) + pose[:2, 2, None, None].float()
        index = [source[a].round().long().clamp(0, n - 1) for a, n in enumerate(ids.shape)]
        patch = centroid[:, index[0], index[1]]
        way, inside = ways(patch[None], pose[None])
        centre = torch.einsum("ij,jhw->ihw", pose[:2, :2].float(), at - way[0]) + pose[:2, 2, None, None].float()
        on = inside[0, 0] > 0
        assert on.any()
        torch.testing.assert_close(centre[:, on], patch[1:, on], atol=1e-3, rtol=1e-4)

    def test_true_maps_have_no_loss(self):
        ids, me = torn(3), method()
        case = case_of(ids)
        target = torch.from_numpy(me.targets(case)["centroid"].data)[None]
        way, _ = ways(target, torch.eye(3)[None])
        label = torch.from_numpy(np.asarray(case.labels["reference"].data)).long()[None]
        sure = lambda on: torch.where(on, 40.0, -40.0)[:, None]
        me.network.forward = lambda image: {"tissue": sure(label == 1), "pen": sure(label == 2), "way": way / me.factor}
        batch = Batch(torch.zeros(1, 3, *ids.shape), {"reference": label}, torch.eye(3)[None], ["a"], maps={"centroid": target})
        terms = me.losses(batch, Clock(0, 10))
        assert set(terms) == {"tissue", "pen", "way", "gradient"} and all(float(v) < 1e-5 for v in terms.values())

    def test_strokes_ink_image_and_label_alike(self):
        image, inked = with_stroke(np.full((3, 64, 64), 0.95, np.float32), np.random.default_rng(4))
        assert inked.any() and (image[:, ~inked] == np.float32(0.95)).all() and (image[:, inked].min(0) < 0.6).all()


class TestDecoders:
    def test_leaving_one_out_removes_its_parameters_and_nothing_else(self):
        whole, alone = method(), method(("background", "tissue"), separate=False)
        names = {n.split(".")[2] for n, _ in alone.named_parameters() if n.startswith("network.decoders")}
        assert names == {"tissue"}
        alone.network.load_state_dict({k: v for k, v in whole.network.state_dict().items() if k in alone.network.state_dict()})
        x = torch.rand(1, 3, 40, 50)
        torch.testing.assert_close(alone(x)["logits"][:, :1], whole(x)["logits"][:, :1], rtol=0, atol=0)

    def test_answer_has_the_input_s_size(self):
        for side in (31, 64, 70):
            maps = method()(torch.rand(1, 3, side, 45))
            assert maps["logits"].shape == (1, 2, side, 45) and maps["way"].shape == (1, 2, side, 45)

    def test_paper_s_channels(self):
        from vesalius.networks.multi_decoder_unet import MultiDecoderUNet

        net = MultiDecoderUNet(3, {"tissue": 1, "pen": 1, "way": 2})
        assert [b[-2].num_features if hasattr(b[-2], "num_features") else b[-2].out_channels for b in net.encoder] == [
            32,
            64,
            128,
            256,
            512,
            512,
        ]
        assert net.multiple == (512, 512)

    def test_bad_options(self):
        with pytest.raises(UsageError, match="two thresholds"):
            method(thresholds=(0.5,))


class TestSlides:
    def test_a_slide_is_read_in_tiles(self, monkeypatch):
        """40 000 pixels a side at its finest; the plan's grid is read window by window, and glass is passed over."""
        import vesalius.methods.pathology.slide_segmenter as home

        monkeypatch.setattr(home, "_IN_MEMORY", 1000)  # arrays of the slide go to temporary files
        fine = Geometry.of((40_000, 40_000), 0.00025)
        grid = fine.with_spacing((0.016, 0.016))
        asked = []

        def read(at: Geometry) -> np.ndarray:
            asked.append(int(np.prod(at.shape)))
            r, c = (at.origin[a] + at.spacing[a] * np.arange(n) for a, n in enumerate(at.shape))
            disc = np.hypot(r[:, None] - 2, c[None] - 3) < 1
            return np.where(disc, 0.5, 0.96)[None].repeat(3, 0).astype(np.float32)

        image = Image(Lazy(read, fine, 3, np.dtype(np.uint8)), fine)
        image = Image(image.source.on(grid), grid)
        me, told = method(window=128, margin=16), []
        me.progress = lambda n, of: told.append((n, of))
        with torch.no_grad():
            found = me.predict(Case("slide", images={"RGB": image}), rng=np.random.default_rng(0))
        assert found.label.data.shape == (625, 625) == found.instances.data.shape and isinstance(found.label.data, np.memmap)
        assert max(asked) <= 625 * 625 and sorted(asked)[-2] <= 128 * 128
        assert sum(n for n, _ in told) == told[0][1] < 20

    def test_phantom(self):
        """Every fragment has a point of its section, and sections are as many as the table says."""
        whole = PHANTOMS[0].open((4, 1, 1), 0, {})
        for ref in whole.cases:
            case = whole.built_in(ref)
            ids = sections(case)
            assert ids.max() == case.table["sections"]
            assert np.array_equal(ids > 0, np.asarray(case.labels["reference"].data) == 1)
        pieces = PHANTOMS[0].open((2, 0, 0), 0, {"fragments": False, "pen": False})
        assert all(np.asarray(pieces.built_in(r).labels["reference"].data).max() == 1 for r in pieces.cases)
