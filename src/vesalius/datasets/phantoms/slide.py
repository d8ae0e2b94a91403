"""slide: H&E slides seen at low power, RGB: cross-sections of tissue in fragments, pen strokes on the glass, dust.

Sections. One to six serial sections lie in a row or two, as one cuts them: the same lobulated outline, turned a little. Cutting tears
each into one to four fragments that drift apart; gaps between fragments may be as wide as those between neighbouring sections, so that
nearness does not tell who belongs together, but the shape of the whole does. Light. Beer-Lambert: the amounts of haematoxylin and eosin
(smooth texture, a rim rich in nuclei) times their absorptions (Ruifrok and Johnston 2001), through glass that is slightly uneven. Pen:
one or two bent strokes (blue, green, black) on half of the slides, which absorb over tissue and glass alike; dust is grey specks of no
class.

Known answers: ``sections`` (how many); points 'section 1'.. lie one on each fragment. Pixels are 0.048 mm.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .forms import Blob, capsule, centred, field, world
from .phantom import Phantom
from .scene import Drawing, Option, Scene, Who

SIDE, MM, MOST = 128, 0.048, 6
_H, _E = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])  # absorption of red, green, blue
_INKS = np.array([[1.7, 1.1, 0.25], [1.6, 0.45, 1.0], [1.8, 1.8, 1.7]])


def sketch(who: Who) -> Scene:
    """How many sections, where they lie, and how each is torn."""
    rng = who.rng()
    n = int(rng.integers(1, MOST + 1))
    rows = 1 if n <= 3 and rng.random() < 0.6 else 2
    columns = -(-n // rows)
    reach = rng.uniform(0.34, 0.42) * SIDE * MM / max(rows, columns)
    outline = Blob.draw(rng, (0, 0), np.pi * reach**2, bumps=5, height=0.5, sharpness=3, elongation=0.2)
    places = [np.array([(i // columns + 0.5) / rows - 0.5, (i % columns + 0.5) / columns - 0.5]) * SIDE * MM for i in range(n)]
    torn = who.options["fragments"]
    parts = [int(rng.integers(1, 5)) if torn else 1 for _ in range(n)]
    pens = int(rng.integers(1, 3)) if who.options["pen"] and rng.random() < 0.5 else 0
    table = {"sections": n}
    return Scene(table, {"outline": outline, "places": places, "parts": parts, "pens": pens})


def render(who: Who, scene: Scene) -> Drawing:
    """One slide: RGB (3, 128, 128) uint8."""
    rng, p = who.rng(1), scene.parts
    grid = centred((SIDE, SIDE), MM)
    at = world(grid)
    ids, label = np.zeros(grid.shape, int), np.zeros(grid.shape, np.int16)
    depth = np.zeros(grid.shape, np.float32)
    for k, (place, parts) in enumerate(zip(p["places"], p["parts"], strict=True), 1):
        for piece, d in _fragments(rng, at, place + rng.normal(0, 0.06, 2), p["outline"], parts):
            new = piece & ~ndimage.binary_dilation(ids > 0, np.ones((5, 5)))
            ids[new], depth[new] = k, d[new]
    pens = [(_stroke(rng, at), _INKS[rng.integers(len(_INKS))] * rng.uniform(0.7, 1)) for _ in range(p["pens"])]
    label[ids > 0] = 1
    for inked, _ in pens:
        label[inked] = 2
    points = {f"section {k}": grid.to_world(_deepest((ids == k) & (label == 1))) for k in range(1, MOST + 1)}
    texture = np.exp(0.35 * field(rng, grid.shape, 2.5) + 0.2 * field(rng, grid.shape, 0.8))
    rim = np.exp(depth / (4 * MM))  # depth is negative inside
    haematoxylin = (0.25 + 0.9 * rim) * texture * (ids > 0)
    eosin = 0.55 * (ids > 0) * np.exp(0.25 * field(rng, grid.shape, 4))
    density = _H[:, None, None] * haematoxylin + _E[:, None, None] * eosin
    density = ndimage.gaussian_filter(density * rng.uniform(0.7, 1.3), (0, 0.5, 0.5))
    density += 0.02 * (1 + 0.5 * field(rng, grid.shape, 40))[None]
    for _ in range(int(rng.integers(3, 10))):
        speck = capsule(at, *(rng.uniform(-0.5, 0.5, 2) * SIDE * MM + rng.normal(0, 0.05, (2, 2))), rng.uniform(0.02, 0.07))
        density += 0.5 * rng.uniform(0.3, 1) * (speck < 0)[None]
    for inked, ink in pens:
        density += ink[:, None, None] * inked
    light = np.exp(-density) * 0.97 + 0.006 * rng.standard_normal(density.shape)
    image = np.clip(np.round(255 * light), 0, 255).astype(np.uint8)
    return Drawing(grid, {"RGB": image}, {"reference": label}, points=points)


def _fragments(
    rng: np.random.Generator, at: np.ndarray, place: np.ndarray, outline: Blob, parts: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mask, signed distance) of each fragment: the section's outline, turned, cut by lines through it, the parts pushed outwards."""
    angle = rng.normal(0, 0.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    start = rng.uniform(0, 2 * np.pi)
    edges = np.sort(start + 2 * np.pi * (np.arange(parts) + rng.uniform(-0.2, 0.2, parts)) / parts)
    out = []
    for i in range(parts):
        low, high = edges[i], edges[(i + 1) % parts] + (2 * np.pi if i == parts - 1 else 0)
        middle = (low + high) / 2
        push = (0.12 + 0.12 * rng.random()) * outline.size * (parts > 1)
        shift = place + push * np.array([np.sin(middle), np.cos(middle)])
        x = at - shift.astype(np.float32)[:, None, None]
        d = outline.distance(np.einsum("ij,jhw->ihw", turn.astype(np.float32), x))
        sector = (np.arctan2(x[0], x[1]) - low) % (2 * np.pi) < high - low if parts > 1 else True
        out.append(((d < 0) & sector, d))
    return out


def _deepest(mask: np.ndarray) -> np.ndarray:
    """(n, 2): the pixel deepest inside each connected part."""
    parts, n = ndimage.label(mask, np.ones((3, 3)))
    inside = ndimage.distance_transform_edt(mask)
    return np.array(ndimage.maximum_position(inside, parts, range(1, n + 1)), float).reshape(n, 2)


def _stroke(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    """A bent line across the slide, 0.1 to 0.2 mm wide."""
    knots = rng.uniform(-0.5, 0.5, 2) * SIDE * MM + np.cumsum(rng.normal(0, 1.1, (5, 2)), 0)
    radius = rng.uniform(0.05, 0.1)
    t = np.linspace(0, len(knots) - 1, 24)
    line = np.stack([np.interp(t, np.arange(len(knots)), ndimage.gaussian_filter1d(k, 0.7, mode="nearest")) for k in knots.T], 1)
    return np.logical_or.reduce([capsule(at, a, b, radius) < 0 for a, b in zip(line[:-1], line[1:], strict=True)])


PHANTOMS = (
    Phantom(
        name="slide",
        title="Slides with torn tissue sections and pen marks",
        dims=2,
        modality="histology",
        channels=("RGB",),
        labels=("background", "tissue", "pen"),
        splits=(48, 8, 24),
        points=tuple(f"section {k}" for k in range(1, MOST + 1)),
        marks=tuple(f"section {k}" for k in range(1, MOST + 1)),
        targets={"sections": {"kind": "real"}},
        text="128 x 128 pixels of 0.048 mm; one to six sections of one to four fragments each, pen on half of the slides, dust.",
        options={
            "fragments": Option(True, (True, False), "sections are torn; False: each is one piece"),
            "pen": Option(True, (True, False), "pen strokes on half of the slides"),
        },
        sketch=sketch,
        render=render,
    ),
)
