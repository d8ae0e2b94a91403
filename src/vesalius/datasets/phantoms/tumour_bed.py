"""tumour-bed: prone CT of a breast after lumpectomy, with surgical clips on the rim of a bed that hardly differs from gland.

Anatomy (mm, RAS+; prone, so the breast hangs towards +y). The breast is a half-ellipsoid on a curved chest wall (muscle, ribs, lung
behind), with 2 mm of skin. Gland is the sigmoid of a smooth random field inside a smaller ellipsoid, fat the rest. The tumour bed is a
lobulated star-shaped solid of gland tissue 6 HU below gland (``contrast`` x 20 HU of noise); up to three blobs of the same law of shape,
size and value lie elsewhere in gland: without the clips nothing tells the bed from them. Four to six titanium clips (rods 7 mm long, 2.2
mm thick) sit on the bed's rim, spread apart; one or two calcifications of 300-900 HU lie outside it.

Imaging. Tissue values are mixed by the share of the voxel each fills (partial volume from signed distances) and blurred by 0.5 voxel;
clips by 3 x 3 x 3 supersampling, 14000 HU for metal, stored up to 3071 HU. Noise is Gaussian of sd 20 HU, correlated over 0.6 voxel as a
reconstruction kernel leaves it, 10 % more towards the chest wall. A patient has one or two CTs (fractions): same anatomy, a smooth
deformation of about 1.5 mm, new noise. Scanner axes are stored LPS, or RAS for some patients.

Known answers: ``volume_ml`` of the bed (before deformation), ``clips``, ``calcifications``, ``distractors``; ``points['clips']`` are clip
centres in world mm (not an image channel: a method finds them in the CT).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ...core.geometry import Geometry
from .forms import Blob, capsule, centred, coverage, directions, ellipsoid, field, pair_arrays, split_arrays, stored_as, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SHAPE, SPACING = (64, 64, 48), (2.0, 2.0, 2.5)
FAT, GLAND, SKIN, MUSCLE, LUNG, RIB, AIR, METAL = -100.0, 38.0, 25.0, 55.0, -780.0, 450.0, -1000.0, 14000.0
NOISE = 20.0
CHEST = -34.0  # y of the chest wall at the breast's axis


def sketch(who: Who) -> Scene:
    """The patient's anatomy: breast size, bed, distractors, clips, calcifications (shared by the patient's CTs)."""
    rng = who.rng(0, shared=True)
    radii = np.array([rng.uniform(46, 54), rng.uniform(72, 84), rng.uniform(42, 50)])
    middle = np.array([rng.normal(0, 2), CHEST, rng.normal(0, 2)])
    volumes = 1000 * np.exp(rng.normal(np.log(9.0), 0.3, 4))  # mm^3

    def inside() -> np.ndarray:
        u = rng.standard_normal(3)
        u *= rng.uniform() ** (1 / 3) / np.linalg.norm(u)
        return middle + np.array([0, 0.36 * radii[1], 0]) + u * np.array([0.58, 0.30, 0.58]) * radii

    blobs = _blobs(rng, inside, volumes, middle, radii)
    bed = blobs[0]
    wanted = int(rng.integers(4, 7))
    u = directions(3, wanted)[rng.permutation(wanted)] @ _turn(rng).T
    u = u + rng.normal(0, 0.25, u.shape)
    clips = bed.rim(u / np.linalg.norm(u, axis=1, keepdims=True))
    along = rng.standard_normal(clips.shape)
    along *= 2.5 / np.linalg.norm(along, axis=1, keepdims=True)
    dots, calcifications = [], int(rng.integers(1, 3))
    while len(dots) < calcifications:
        p = inside()
        if bed.distance(p[:, None])[0] > 6 and min(np.linalg.norm(clips - p, axis=1)) > 9:
            dots.append((p, float(rng.uniform(400, 800)), float(rng.uniform(0.9, 1.4))))
    table = {
        "distractors": len(blobs) - 1,
        "volume_ml": round(bed.volume() / 1000, 3),
        "clips": wanted,
        "calcifications": calcifications,
        "fraction": who.exam + 1,
    }
    return Scene(table, {"radii": radii, "middle": middle, "blobs": blobs, "clips": clips, "along": along, "dots": dots})


def _blobs(rng: np.random.Generator, draw, volumes: np.ndarray, middle: np.ndarray, radii: np.ndarray, tries: int = 30) -> list[Blob]:
    """The bed and as many of the distractors as find room: 4 mm under the skin, off the chest wall, apart from each other."""
    u, chosen = directions(3, 80), []
    for volume in volumes:
        for _ in range(tries if chosen else 200 * tries):
            centre, ball = draw(), (3 * volume / (4 * np.pi)) ** (1 / 3)
            if ellipsoid(centre[:, None], middle, radii)[0] > -ball or any(b.distance(centre[:, None])[0] < ball for b in chosen):
                continue
            blob = Blob.draw(rng, centre, volume, bumps=8, height=0.6, elongation=0.25)
            rim = blob.rim(u)
            fits = ellipsoid(rim.T, middle, radii).max() < -4 and rim[:, 1].min() > CHEST + 3
            if fits and all(b.distance(rim.T).min() > 2 for b in chosen):
                chosen.append(blob)
                break
    return chosen


def _turn(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return q


def render(who: Who, scene: Scene) -> Drawing:
    """One CT of the patient."""
    p, own, rng = scene.parts, who.rng(1), who.rng(1, shared=True)
    grid = centred(SHAPE, SPACING, (0, 0, 0))
    fixed = world(grid)
    at, clips, along = fixed, p["clips"], p["along"]
    if who.exam:
        bend = np.stack([field(own, SHAPE, 10) for _ in range(3)]) * 1.5
        bend *= np.clip((fixed[1] - CHEST) / 20, 0, 1)
        at = fixed + bend
        clips = clips - _read(bend, grid, clips)  # y = x + bend(x): a body point c is seen at about c - bend(c)
    size = float(np.mean(SPACING))
    breast_d = np.maximum(ellipsoid(at, p["middle"], p["radii"]), CHEST - 12 - at[1])
    wall_d = at[1] - (CHEST - 0.004 * at[0] ** 2 + 2 * field(rng, SHAPE, 14))
    body = np.maximum(coverage(breast_d, size), coverage(wall_d, size))
    skin = np.clip(coverage(np.minimum(breast_d, wall_d), size) - coverage(np.minimum(breast_d, wall_d) + 2.2, size), 0, 1)
    skin *= at[1] > CHEST - 4
    bed_d = p["blobs"][0].distance(at)
    near = np.minimum.reduce([b.distance(at) for b in p["blobs"]])
    gland_d = ellipsoid(at, p["middle"] + [0, 0.34 * p["radii"][1], 0], p["radii"] * [0.78, 0.56, 0.78])
    fibrous = 1.1 * field(rng, SHAPE, 3.5) + 0.7 * field(rng, SHAPE, 1.5) - 0.1 - gland_d / 9 + np.clip(2.6 - near / 5, 0, 3)
    gland = 1 / (1 + np.exp(-4 * fibrous))
    tissue = FAT + (GLAND - FAT) * gland
    contrast = who.options["contrast"] * NOISE
    for b in p["blobs"]:
        share = coverage(b.distance(at), size)
        tissue = tissue * (1 - share) + (GLAND - contrast) * share
    tissue += 4 * field(rng, SHAPE, 1.2) * gland
    ct = AIR + (tissue - AIR) * body
    ct += (SKIN - ct) * skin
    ct = _chest(ct, at, wall_d, rng, size)
    for centre, value, radius in p["dots"]:
        ct += value * coverage(ellipsoid(at, centre, [radius * 1.4] * 3), 2.0)
    ct = ndimage.gaussian_filter(ct, 0.5)
    ct += (METAL - ct) * np.minimum(1, _metal(grid, clips, along))
    grain = ndimage.gaussian_filter(own.standard_normal(SHAPE, dtype=np.float32), 0.6)
    ct += NOISE * grain / grain.std() * (1 - 0.1 * np.clip(fixed[1] / 60, -1, 1))
    label = (bed_d < 0).astype(np.int16)
    roi = ((breast_d < 0) & (at[1] > CHEST - 2)).astype(np.int16)
    images = {"CT": np.clip(np.round(ct), -1024, 3071).astype(np.int16)[None]}
    code = "RAS" if who.patient % 3 == 2 else "LPS"
    place = who.rng(2, shared=True).normal(0, 60, 3).round(1)  # where the scanner's isocentre was
    grid = centred(SHAPE, SPACING, place)
    stored, arrays = stored_as(code, grid, pair_arrays(images, {"reference": label}, {"breast": roi}))
    return Drawing(stored, points={"clips": clips + place}, **split_arrays(arrays))


def _read(bend: np.ndarray, grid: Geometry, points: np.ndarray) -> np.ndarray:
    index = grid.to_index(points).T
    return np.stack([ndimage.map_coordinates(b, index, order=1, mode="nearest") for b in bend], 1)


def _chest(ct: np.ndarray, at: np.ndarray, wall_d: np.ndarray, rng: np.random.Generator, size: float) -> np.ndarray:
    """Muscle 14 mm deep, ribs in it every 24 mm, lung behind."""
    shift = rng.uniform(-12, 12)
    muscle, lung = coverage(wall_d + 2.5, size), coverage(wall_d + 16, size)
    height = np.abs((at[2] + 0.25 * at[0] - shift + 12) % 24 - 12)
    rib = coverage(np.sqrt(height**2 + (wall_d + 11) ** 2) - 4.5, size)
    ct = ct + (MUSCLE - ct) * muscle
    ct = ct + (LUNG - ct) * lung
    return ct + (RIB - ct) * rib * (at[1] < CHEST)


def _metal(grid: Geometry, clips: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Share of each voxel filled by the rods, by 3 x 3 x 3 supersampling in a box about each clip."""
    out = np.zeros(grid.shape, np.float32)
    offsets = np.stack(np.meshgrid(*[(np.arange(3) - 1) / 3] * 3, indexing="ij")).reshape(3, -1)
    for centre, half in zip(clips, along, strict=True):
        middle = np.round(grid.to_index(centre)).astype(int)
        low, high = np.maximum(middle - 3, 0), np.minimum(middle + 4, grid.shape)
        box = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij")).reshape(3, -1)
        fine = (box[:, :, None] + offsets[:, None]).transpose(1, 2, 0)
        at = (np.array(grid.origin) + fine * grid.spacing).transpose(2, 0, 1)
        inside = capsule(at, centre - half, centre + half, 1.1) < 0
        out[tuple(box)] += inside.mean(1)
    return out


PHANTOMS = (
    Phantom(
        name="tumour-bed",
        title="Prone breast CT after lumpectomy: low-contrast tumour bed with surgical clips",
        dims=3,
        modality="CT",
        channels=("CT",),
        labels=("background", "tumour bed"),
        splits=(36, 9, 12),
        exams=(2, 1),
        rois=("breast",),
        points=("clips",),
        given=("fraction",),
        text="""24 training, 6 validation and 8 test patients with one or two CTs each. The bed differs from gland by 0.3 sd of the noise;
        blobs of equal look without clips are distractors, calcifications of 300-900 HU imitate clips.""",
        options={"contrast": Option(0.3, float, "bed below gland, in sd of the noise")},
        sketch=sketch,
        render=render,
    ),
)
