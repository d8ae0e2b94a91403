"""The pictures of the annotator's page in the README and docs/annotate.md: real images, LiteMedSAM's real weights, a headless Chromium.

    .venv/bin/python docs/screenshots.py        writes docs/img/annotate_2d.png and docs/img/annotate_3d.png: look at them

Needs ../shared/data, Chromium and the weights that ``make setup`` fetches. The box is the one around the reference, a little larger.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.serve.browser import Browser, annotating  # noqa: E402 - lends its driver
from tests.serve.test_page import saved, spots  # noqa: E402
from vesalius import io  # noqa: E402
from vesalius.serve.sources import manifest_of  # noqa: E402
from vesalius.serve.store import Project  # noqa: E402

DATA, OUT = ROOT.parent / "shared" / "data", ROOT / "docs" / "img"
PICTURES, CT = DATA / "2d" / "busi_seg", DATA / "3d" / "totalseg_examples"
ORGANS = {  # name: value among TotalSegmentator's classes, colour
    "liver": (5, "#c25b4e"),
    "spleen": (1, "#7a86d9"),
    "right kidney": (2, "#d9a13b"),
    "left kidney": (3, "#e6c65c"),
    "aorta": (52, "#d9405f"),
}
BOXED = "left kidney"


@contextmanager
def page_of(project: Path, *what: Path) -> Iterator[Browser]:
    """The page of ``vesalius annotate``, the first case open."""
    with annotating(*what, project=project) as link, Browser() as page:
        page.go(link)
        page.until("window.vesalius?.current && !vesalius.loading", 120)
        yield page


def boxed(page: Browser, low: np.ndarray, high: np.ndarray) -> None:
    """Drag a box between two indices and wait for the mask."""
    page.until("vesalius.current.prompter?.state == 'ready'", 120)
    page.key("b")
    page.drag(spots(page, low.tolist(), high.tolist()))
    answered(page, 1)


def answered(page: Browser, prompts: int) -> None:
    page.until(f"vesalius.current.prompter.prompts == {prompts} && vesalius.lastAnswer.includes('ms')", 120)


def taken(page: Browser, file: Path) -> None:
    """The picture when all is saved and measured."""
    saved(page)
    page.until("vesalius.current.measured == vesalius.current.saver.head", 60)
    page.value("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    page.picture(file)


def lesion(folder: Path) -> None:
    """An ultrasound picture: a box, and a click on either side of the border."""
    reference = Project(folder / "reference", manifest_of(PICTURES)).reference("c1").data > 0
    low, high = (np.append(edge(np.argwhere(reference), axis=0), 0) for edge in (np.min, np.max))
    middle, above = (low + high) // 2, np.array([low[0] - 12, (3 * low[1] + high[1]) // 4, 0])
    with page_of(folder / "2d", PICTURES) as page:
        boxed(page, low - [3, 3, 0], high + [3, 3, 0])
        for key, at in (("c", middle), ("x", above)):
            page.key(key)
            page.drag(spots(page, at.tolist()))
            answered(page, 2 if key == "c" else 3)
        taken(page, OUT / "annotate_2d.png")


def organs(folder: Path) -> None:
    """A CT in which somebody outlined some organs; the next one gets a box in a slice."""
    image = CT / "ct_thorax_abdomen.nii.gz"
    classes = io.read_image(CT / "ct_thorax_abdomen_seg.nii.gz").data[0]
    project, mask = Project(folder / "3d", manifest_of([image])), np.zeros(classes.shape, np.uint8)
    project.set_labels([{"name": name, "value": k, "color": colour} for k, (name, (_, colour)) in enumerate(ORGANS.items(), 1)])
    for k, (name, (value, _)) in enumerate(ORGANS.items(), 1):
        if name != BOXED:
            mask[classes == value] = k
    project.save("c1", mask, None, user="root", note="outlined by TotalSegmentator")
    places = np.argwhere(classes == ORGANS[BOXED][0])
    z = int(np.bincount(places[:, 2]).argmax())
    low, high = (edge(places[places[:, 2] == z], 0) for edge in (np.min, np.max))
    with page_of(folder / "3d", image) as page:
        page.choose("#preset", "CT soft tissue")
        page.value(f"vesalius.view.place = {((low + high) // 2).tolist()}")
        page.click(f".label:nth-child({1 + list(ORGANS).index(BOXED)}) .pick")
        boxed(page, low - [1, 1, 0], high + [1, 1, 0])
        taken(page, OUT / "annotate_3d.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as where:
        lesion(Path(where))
        organs(Path(where))


if __name__ == "__main__":
    main()
