"""Built-in data sets: same bits every time, known answers equal the masks, patients in one split, every option does what it says."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import UsageError
from vesalius.datasets.phantoms import PHANTOMS, describe, names, open_phantom

CASES = {"train": 3, "val": 1, "test": 2}


def digest(case) -> str:
    parts = [x.data.tobytes() + str(x.data.dtype).encode() for g in (case.images, case.labels, case.rois) for x in g.values()]
    parts += [p.xyz.tobytes() for p in case.points.values()] + [case.geometry.affine.tobytes(), repr(sorted(case.table.items())).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def draw(name, case="train-000", **options):
    manifest = open_phantom(name, cases=CASES, **options)
    return manifest.built_in(manifest[case])


def volume_ml(case, value=1) -> float:
    return float((case.labels["reference"].data == value).sum() * case.geometry.voxel_volume / 1000)


@pytest.mark.parametrize("name", names())
def test_case_is_what_its_row_says(name):
    manifest = open_phantom(name, cases=CASES)
    by_name = {d["name"]: d for d in describe()}[name]
    assert manifest.dims == by_name["dims"] and manifest.licence == "built in" and manifest.names[0] == "background"
    for ref in manifest.cases[:2] + manifest.cases[-1:]:
        case = manifest.built_in(ref)
        assert (case.id, case.patient, case.source) == (ref.id, ref.patient, ref.source) and case.table == ref.table
        for group, row in ((case.images, ref.images), (case.labels, ref.labels), (case.rois, ref.rois), (case.points, ref.points)):
            assert set(group) == set(row)
        assert tuple(case.images) == manifest.channels and case.geometry.ndim == manifest.dims
        for image in case.images.values():
            assert image.data.shape[1:] == case.geometry.shape and image.geometry == case.geometry
            assert np.isfinite(image.data).all() and image.data.std() > 0
        for label in case.labels.values():
            assert label.data.shape == case.geometry.shape and label.names == manifest.names
            assert 0 <= label.data.min() and label.data.max() < manifest.classes
        direction = case.geometry.direction
        assert np.allclose(direction.T @ direction, np.eye(manifest.dims))


@pytest.mark.parametrize("name", names())
def test_same_seed_and_index_same_bits(name):
    small, large = open_phantom(name, cases=CASES), open_phantom(name, cases={"train": 5, "val": 2, "test": 4})
    late = [digest(small.built_in(small[i])) for i in ("test-001", "train-001")]  # any order
    again = pickle.loads(pickle.dumps(large.built_in))
    early = [digest(again(large[i])) for i in ("train-001", "test-001")]
    assert late == early[::-1]
    other = open_phantom(name, cases=CASES, seed=1)
    assert digest(other.built_in(other["train-001"])) != early[0] and other.digest() != small.digest()


def test_same_bits_in_another_process_with_other_threads():
    chosen = ["tumour-bed", "torso-mr", "ultrasound", "vessel-tree", "chest-radiograph"]
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_phantoms as t; print([t.digest(t.draw(n)) for n in {chosen!r}])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"OMP_NUM_THREADS": "2", "PATH": ""}, check=True)
    assert out.stdout.strip() == str([digest(draw(n)) for n in chosen])


def test_import_loads_no_torch():
    code = "import sys, vesalius.datasets.phantoms as p; p.describe(); assert not {'torch', 'matplotlib', 'skimage'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", names())
def test_no_patient_in_two_splits(name):
    manifest = open_phantom(name)
    patients = [{manifest[i].patient for i in manifest.where(s)} for s in ("train", "val", "test")]
    assert all(patients) and not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert tuple(len(manifest.where(s)) for s in ("train", "val", "test")) == PHANTOMS[name].splits


def test_exams_of_a_patient_share_anatomy_not_noise():
    manifest = open_phantom("tumour-bed")
    assert len({r.patient for r in manifest.cases if r.split == "train"}) == 24
    first, second, third = (manifest.built_in(manifest[f"train-00{k}"]) for k in range(3))
    assert first.patient == second.patient != third.patient and first.table["volume_ml"] == second.table["volume_ml"]
    a, b = first.labels["reference"].data > 0, second.labels["reference"].data > 0
    assert 0.8 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 1
    moved = np.linalg.norm(first.points["clips"].xyz - second.points["clips"].xyz, axis=1)
    assert 0.1 < moved.max() < 8
    assert not np.array_equal(first.images["CT"].data, second.images["CT"].data)


# ------------------------------------------------------------------------------------------------------------------- known answers
@pytest.mark.parametrize("index", ["train-000", "train-002", "test-000"])
def test_tumour_bed_answers(index):
    case = draw("tumour-bed", index)
    assert volume_ml(case) == pytest.approx(case.table["volume_ml"], rel=0.04)
    ct, clips = case.images["CT"].data[0], case.points["clips"].xyz
    assert len(clips) == case.table["clips"] and 4 <= len(clips) <= 6
    metal = np.argwhere(ct > 2000)
    to_clip = np.linalg.norm(case.geometry.to_world(metal)[:, None] - clips[None], axis=2)
    assert (to_clip.min(0) < 2.5).all(), "a clip without metal"
    assert (to_clip.min(1) < 6).all(), "metal away from all clips"
    bed = np.argwhere(case.labels["reference"].data)
    to_bed = np.linalg.norm(case.geometry.to_world(bed)[:, None] - clips[None], axis=2).min(0)
    assert to_bed.max() < 4
    assert case.rois["breast"].data[case.labels["reference"].data > 0].mean() > 0.97


def test_tumour_bed_cannot_be_thresholded():
    """Against distractors and the gland around it the bed differs by less than the noise, and no threshold ranks it."""
    manifest, noise = open_phantom("tumour-bed"), 20.0
    to_others, to_shell, areas = [], [], []
    for place in (0, 2, 3):
        who, case = manifest.built_in.who("test", place), manifest.built_in(manifest[f"test-{place:03d}"])
        parts = manifest.built_in.phantom.sketch(who).parts
        index = np.stack(np.meshgrid(*map(np.arange, case.geometry.shape), indexing="ij"), -1)
        at = case.geometry.to_world(index) - (case.points["clips"].xyz - parts["clips"]).mean(0)
        ct, bed = case.images["CT"].data[0].astype(float), case.labels["reference"].data > 0
        tissue = (case.rois["breast"].data > 0) & (ct < 250)
        others = np.logical_or.reduce([b.distance(np.moveaxis(at, -1, 0)) < 0 for b in parts["blobs"][1:]])
        shell = ndimage.binary_dilation(bed, iterations=3) & ~bed & tissue
        to_others.append((ct[bed & tissue].mean() - ct[others & tissue].mean()) / noise)
        to_shell.append((ct[bed & tissue].mean() - ct[shell].mean()) / noise)
        gland = tissue & (ct > -20) & (ct < 90)
        ranks, positive = np.argsort(np.argsort(ct[gland])), bed[gland]
        n = positive.sum()
        areas.append((ranks[positive].sum() - n * (n - 1) / 2) / (n * (~positive).sum()))
    assert np.abs(to_others).max() < 0.35 and np.abs(to_shell).max() < 0.9, (to_others, to_shell)
    assert 0.42 < min(areas) and max(areas) < 0.6, areas


@pytest.mark.parametrize("name", ["tumour-bed", "torso-ct", "brain-mr", "vessel-tree-3d"])
def test_orientations_are_mixed(name):
    manifest = open_phantom(name)
    codes = (manifest.built_in(r).geometry.orientation for r in manifest.cases[2:11])
    first = next(codes)
    assert any(code != first for code in codes)


@pytest.mark.parametrize("name", ["torso-ct", "torso-mr"])
def test_torso_answers(name):
    case = draw(name, lesions=True)
    for k, organ in enumerate(("liver", "right_kidney", "left_kidney", "spleen"), 1):
        assert volume_ml(case, k) == pytest.approx(case.table[f"{organ}_ml"], rel=0.08), organ
    assert volume_ml(case, 6) == pytest.approx(case.table["lesion_ml"], rel=0.35, abs=0.25)
    centre = lambda k: case.geometry.to_world(np.argwhere(case.labels["reference"].data == k)).mean(0)
    liver, right, left, spleen, spine = (centre(k) for k in range(1, 6))
    assert liver[0] > spine[0] > spleen[0] and right[0] > spine[0] > left[0] and right[2] < left[2]


def test_torso_lesions_and_pairs():
    tables = [r.table for r in open_phantom("torso-ct", lesions=True).cases]
    assert 0.1 < np.mean([t["lesions"] == 0 for t in tables]) < 0.55
    both = draw("torso-mr", paired=True)
    assert tuple(both.images) == ("CT", "MR") and np.array_equal(
        both.labels["reference"].data, draw("torso-ct", paired=True).labels["reference"].data
    )
    assert draw("torso-ct").table != draw("torso-mr").table  # unpaired: other subjects


def test_radiograph_answers():
    case = draw("chest-radiograph", structures="organs")
    assert {n: len(p.xyz) for n, p in case.points.items()} == {"right_lung": 44, "left_lung": 50, "heart": 26}
    lungs = draw("chest-radiograph")
    pixels = (lungs.labels["reference"].data == 1).sum() * lungs.geometry.voxel_volume / 100
    assert pixels == pytest.approx(lungs.table["right_lung_cm2"] + lungs.table["left_lung_cm2"], rel=0.02)
    label, grid = case.labels["reference"].data, case.geometry
    for k, name in enumerate(("right_lung", "left_lung", "heart"), 1):
        outline = grid.to_index(case.points[name].xyz)
        middle = np.argwhere(label == k).mean(0)
        assert np.linalg.norm(outline.mean(0) - middle) < 8
    assert case.points["right_lung"].xyz[:, 1].mean() < case.points["left_lung"].xyz[:, 1].mean()
    assert not draw("chest-radiograph", landmarks=False).points


def test_radiograph_points_correspond_and_sites_differ():
    a, b = draw("chest-radiograph", "train-000"), draw("chest-radiograph", "train-001")
    for n in a.points:  # the same point is nearer to itself in another subject than a random one, after aligning the middles
        x, y = (c.points[n].xyz - c.points[n].xyz.mean(0) for c in (a, b))
        assert np.linalg.norm(x - y, axis=1).mean() < 0.5 * np.linalg.norm(x - np.roll(y, 6, axis=0), axis=1).mean()
    images = [draw("chest-radiograph", site=s).images["XR"].data.astype(float) for s in "AB"]
    assert abs(images[0].mean() - images[1].mean()) > 10
    tables = [r.table for r in open_phantom("chest-radiograph").cases]
    assert {t["site"] for t in tables} == {"A", "B"} and {t["nodule"] for t in tables} == {"yes", "no"}


def test_ultrasound_answers():
    manifest = open_phantom("ultrasound")
    assert {r.table["class"] for r in manifest.cases} == {"normal", "benign", "malignant"}
    sectors = open_phantom("ultrasound", geometry="sector")
    for built_in, ref in [(manifest.built_in, r) for r in manifest.cases[:12]] + [(sectors.built_in, r) for r in sectors.cases[:6]]:
        case = built_in(ref)
        area = case.labels["reference"].data.sum() * case.geometry.voxel_volume
        assert area == pytest.approx(ref.table["lesion_mm2"], rel=0.06)
        assert (area == 0) == (ref.table["class"] == "normal")
        if area and ref.table["centre"] == "A":
            us, lesion = case.images["US"].data[0], case.labels["reference"].data > 0
            assert us[lesion].mean() < us[np.argwhere(lesion)[:, 0].min() : np.argwhere(lesion)[:, 0].max()].mean() - 15
    sector = draw("ultrasound", geometry="sector")
    assert 0.4 < sector.rois["sector"].data.mean() < 0.9 and not sector.labels["reference"].data[sector.rois["sector"].data == 0].any()


def test_speckle_is_fully_developed():
    """The envelope of fully developed speckle is Rayleigh: mean / sd = 1.91."""
    from vesalius.datasets.phantoms.ultrasound import CENTRES

    us = draw("ultrasound", "train-002", centre="B").images["US"].data[0].astype(float)
    patch = us[60:100, 20:140]
    envelope = 10 ** ((patch / 255 - 1) * CENTRES["B"][2] / 20)[patch < 255]
    assert 1.2 < envelope.mean() / envelope.std() < 2.6


def test_polyp_brain_context_and_vessel_answers():
    for place in range(3):
        polyp = draw_at("polyp", place)
        assert polyp.labels["reference"].data.sum() == pytest.approx(polyp.table["polyp_px"], rel=0.05)
        assert polyp.images["RGB"].data.shape == (3, 160, 160) and polyp.images["RGB"].data.dtype == np.uint8
        brain = draw_at("brain-mr", place)
        assert volume_ml(brain) == pytest.approx(brain.table["lesion_ml"], rel=0.15, abs=0.05)
        moving = draw_at("moving-context", place)
        assert not moving.labels or volume_ml(moving) == pytest.approx(moving.table["volume_ml"], rel=0.03)
    case = draw("brain-mr")
    if case.table["lesions"]:
        lesion = case.labels["reference"].data > 0
        shell = np.abs(case.images["FLAIR"].data[0][lesion].mean() / case.images["FLAIR"].data[0][~lesion].max())
        assert shell > 0.6
    tissues = draw("brain-mr", tissues=True, anisotropic=True)
    assert tissues.labels["reference"].names == ("background", "csf", "grey matter", "white matter", "lesion")
    assert sorted(tissues.geometry.spacing) == [2.5, 2.5, 5.0]


def draw_at(name, place):
    manifest = open_phantom(name, cases={"train": 6})
    return manifest.built_in(manifest[f"train-{place:03d}"])


def test_moving_context_misleads():
    rows = open_phantom("moving-context").cases
    labelled = [r for r in rows if r.split == "train" and r.labels]
    assert len(labelled) == 4 and all(r.table["beside"] for r in labelled)
    assert all(not r.table["beside"] and r.table["gap_mm"] > 20 for r in rows if r.split == "test" or (r.split == "train" and not r.labels))
    assert all(r.table["beside"] for r in open_phantom("moving-context", context="fixed").cases if r.split == "test")


def test_murray_law_and_vessel_label():
    from vesalius.datasets.phantoms.vessels import sketch_2d

    manifest = open_phantom("vessel-tree")
    case = manifest.built_in(manifest["train-000"])
    label, fov = case.labels["reference"].data, case.rois["fov"].data
    assert not label[fov == 0].any() and 0.02 < label[fov > 0].mean() < 0.15
    green = case.images["RGB"].data[1].astype(float)
    assert green[label > 0].mean() < green[(label == 0) & (fov > 0)].mean() - 15
    segments = sketch_2d(manifest.built_in.who("train", 0)).parts["segments"]
    children = [
        [t.radius for t in segments if t.arcade == s.arcade and np.array_equal(t.start, s.end) and t.branch != s.branch] for s in segments
    ]
    pairs = [(s.radius, c) for s, c in zip(segments, children, strict=True) if len(c) == 2]
    assert len(pairs) > 5
    for parent, (a, b) in pairs:
        assert a**3 + b**3 == pytest.approx(parent**3)


@pytest.mark.parametrize("name", ["shapes-2d", "shapes-3d"])
@pytest.mark.parametrize("geometry", ["ras", "lps", "oblique", "anisotropic"])
def test_shapes(name, geometry):
    case = draw(name, geometry=geometry)
    for k, column in ((1, "bright_mm"), (2, "dark_mm")):
        size = (case.labels["reference"].data == k).sum() * case.geometry.voxel_volume
        assert size == pytest.approx(case.table[column], rel=0.08)
    if name == "shapes-3d":
        assert case.geometry.orientation == ("LPS" if geometry == "lps" else "RAS")
        assert (np.abs(case.geometry.direction).max(0) < 0.99).any() == (geometry == "oblique")
    assert not draw(name, "train-002", empty=True).labels["reference"].data.any()
    assert draw(name, classes=2).labels["reference"].data.max() == 1


def test_prediction_sees_no_answer():
    for name in names():
        case = draw(name).without_labels()
        assert set(case.table) <= {"site", "centre", "fraction"} and not case.labels and not case.points, name


def test_cache_key_is_stable_and_tells_options_apart():
    keys = [repr(open_phantom("torso-ct", cases=2, **o).built_in) for o in ({}, {"seed": 1}, {"lesions": True}, {"raters": 2})]
    assert len(set(keys)) == 4 and not any(" at 0x" in k for k in keys)
    assert keys[0] == repr(open_phantom("torso-ct").built_in)


# ------------------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: open_phantom("tumor-bed"), "tumour-bed"),
        (lambda: open_phantom("tumour-bed", contrasts=0.5), "contrast"),
        (lambda: open_phantom("chest-radiograph", site="C"), "'A'"),
        (lambda: open_phantom("torso-ct", lesions=1), "bool"),
        (lambda: open_phantom("torso-ct", annotated="livre"), "liver"),
        (lambda: open_phantom("polyp", cases=0), "total"),
        (lambda: open_phantom("polyp", cases={"trian": 3}), "train"),
        (lambda: open_phantom("polyp", seed=-1), "seed"),
        (lambda: open_phantom("polyp", labelled=-1), "labelled"),
        (lambda: open_phantom("polyp", corruption="rain"), "noise"),
    ],
)
def test_refusals_teach(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_counts():
    whole = lambda m: tuple(len(m.where(s)) for s in ("train", "val", "test"))
    assert whole(open_phantom("polyp", cases=10)) == (6, 1, 3)
    assert whole(open_phantom("polyp", cases=(2, 0, 1))) == (2, 0, 1)
    assert whole(open_phantom("polyp", cases=3)) == (1, 1, 1)


def test_gallery(tmp_path):
    from PIL import Image

    from vesalius.datasets.phantoms.gallery import gallery

    picture = np.asarray(Image.open(gallery(tmp_path / "sub" / "all.png")).convert("L"))
    assert min(picture.shape) > 600 and 20 < picture.std()


def test_the_external_centre_of_ultrasound_is_never_trained_on():
    manifest = open_phantom("ultrasound", centre="external")
    by_split = {s: {r.table["centre"] for r in manifest.cases if r.split == s} for s in ("train", "val", "test")}
    assert by_split == {"train": {"A", "B"}, "val": {"A", "B"}, "test": {"C"}}
    assert {r.source for r in manifest.cases if r.split == "test"} == {"centre C"}
    mixed = open_phantom("ultrasound")
    assert {r.table["centre"] for r in mixed.cases if r.split == "test"} == {"A", "B", "C"}
