"""The annotator's page in a real browser: what a person does with mouse and keys, and what the server then holds."""

import errno
import json
import socket
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
import uvicorn

from tests.serve.browser import Browser, chromium
from tests.serve.desk import BUILT, PICTURE, TOKEN, VOLUME, project_of
from vesalius import io
from vesalius.serve.app import PAGE, create_app
from vesalius.serve.models import Models
from vesalius.serve.security import Guard
from vesalius.serve.wire import encode

pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(not (PAGE / "index.html").exists(), reason="the page is not built: make setup"),
]


class Desk:
    """A project on a port, which can go away and come back."""

    def __init__(self, project):
        self.project, self.folder = project, project.folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.link = f"http://127.0.0.1:{self.port}/open?token={TOKEN.replace(' ', '%20')}"
        self.start()

    def start(self, guard=None):
        app = create_app(self.project, guard=guard or Guard(TOKEN), models=Models(self.project, BUILT))
        self.server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", self.port, log_level="error", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(10)

    def mask(self, case="c1"):
        return self.project.mask(case) if self.project.entry(case).head else None


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(downloads=tmp_path_factory.mktemp("downloads")) as page:
        if not page.value("!!document.createElement('canvas').getContext('webgl2')"):
            pytest.skip("this Chromium has no WebGL 2")
        yield page
        page.go("about:blank")


@pytest.fixture
def opened(tmp_path):
    """``opened(dims)``: a desk with two cases, stopped at the end."""
    desks = []

    def start(dims):
        desks.append(Desk(project_of(tmp_path, dims)))
        return desks[-1]

    yield start
    for desk in desks:
        desk.stop()


def enter(page, desk, model="flat"):
    """Sign in with the link and wait until the first case is there and its image is seen by the model."""
    page.go("about:blank")
    page.until("location.href == 'about:blank'")  # the page before may have asked whether to leave
    page.errors.clear()
    page.go(desk.link)
    page.until(f"location.port == '{desk.port}' && location.pathname == '/' && window.vesalius?.current && !vesalius.loading")
    if model:
        page.value(f"vesalius.useModel('{model}')")
        page.until("vesalius.current.prompter?.state == 'ready'")


def spots(page, *places, across=2):
    """Window pixels of indices, in the tile that cuts display axis ``across``."""
    given = json.dumps([list(p) for p in places])
    return [
        tuple(p)
        for p in page.value(
            f"""(() => {{ const v = vesalius.view, box = v.canvas.getBoundingClientRect(), tile = v.tiles.find(t => t.across == {across});
            return {given}.map(at => v.screenAt(tile, at)).map(([x, y]) => [box.x + x / v.pixels, box.y + y / v.pixels]) }})()"""
        )
    ]


def shown(page, shape):
    """The mask that the page holds."""
    return np.array(page.value("Array.from(vesalius.current.mask.voxels)"), np.uint8).reshape(shape)


def saved(page):
    page.until("vesalius.current.saver.state.kind == 'saved' && !vesalius.current.saver.unsaved && vesalius.current.saver.head")


def coloured(page, at):
    """Whether the screen at a window pixel is no grey: the mask's colour is on it."""
    page.value("vesalius.setOpacity(0.9)")
    colour = pixel(page, at)
    return max(colour) - min(colour) > 40


def pixel(page, at):
    """(red, green, blue) of the screen at a window pixel."""
    picture = page.send("Page.captureScreenshot", format="png", clip={"x": at[0] - 1, "y": at[1] - 1, "width": 3, "height": 3, "scale": 1})
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    return np.asarray(Image.open(BytesIO(b64decode(picture["data"]))).convert("RGB"), int)[1, 1].tolist()


def test_a_volume_from_the_link_to_the_export(browser, opened):
    """Box, correction, save, reload, status, export; every voxel where it was pointed at, though the scan is LPS with thick slices."""
    page, desk = browser, opened(3)
    enter(page, desk)
    assert page.value("document.querySelectorAll('[data-case]').length") == 2 and "token" not in page.value("location.href")
    page.value("vesalius.view.place = [9, 7, 5]")
    page.key("b")
    page.drag(spots(page, (3.6, 4.6, 5), (6, 6, 5), (10.4, 8.4, 5)))
    page.until("vesalius.current.prompter.prompts == 1")
    wanted = np.zeros(VOLUME.shape, np.uint8)
    wanted[4:11, 5:9, 5] = 1
    assert np.array_equal(shown(page, VOLUME.shape), wanted)
    (inside, outside) = spots(page, (7, 6, 5), (14, 12, 5))
    assert coloured(page, inside) and not coloured(page, outside)

    page.key("c")
    page.drag(spots(page, (13, 7, 5)))  # something is missing
    page.until("vesalius.current.prompter.prompts == 2")
    grown = shown(page, VOLUME.shape)
    assert grown[13, 7, 5] and grown[4:11, 5:9, 5].all() and grown.sum() > wanted.sum() and not grown[..., [4, 6]].any()
    page.drag(spots(page, (5, 6, 5)), button="right")  # something is too much
    page.until("vesalius.current.prompter.prompts == 3")
    assert not shown(page, VOLUME.shape)[5, 6, 5]
    page.key("z", ctrl=True)
    assert np.array_equal(shown(page, VOLUME.shape), grown)

    saved(page)
    page.until("vesalius.current.measures.length == 1")
    assert np.array_equal(desk.mask(), grown)
    newest = desk.project.entry("c1").versions[-1]
    assert desk.project.entry("c1").status == "draft" and newest.origin["kind"] in ("prompts", "manual")
    page.reload()
    page.until("window.vesalius?.current && !vesalius.loading && vesalius.current.saver.head")
    assert np.array_equal(shown(page, VOLUME.shape), grown)

    page.key("#", code="Digit3", shift=True)
    page.until("document.querySelector('.status .done').getAttribute('aria-pressed') == 'true'")
    assert desk.project.entry("c1").status == "done"
    page.click("#export")
    page.click("#export-go")
    page.until("vesalius.jobs.list.some(j => j.kind == 'export' && j.state == 'done')")
    for _ in range(100):
        files = [f for f in page.downloads.glob("*.zip")]
        if files:
            break
        time.sleep(0.1)
    with zipfile.ZipFile(files[0]) as archive:
        archive.extract("case_0.nii.gz", page.downloads)
    image = io.read_image(page.downloads / "case_0.nii.gz")
    assert np.array_equal(image.data[0], grown) and image.geometry.close(VOLUME)
    assert page.errors == []


@pytest.mark.parametrize("across", [0, 1])
def test_the_other_planes(browser, opened, across):
    page, desk = browser, opened(3)
    enter(page, desk)
    page.value("vesalius.view.place = [9, 7, 5]")
    page.key("b")
    page.drag(spots(page, *([(9, 4.6, 3.6), (9, 9.4, 8.4)] if across == 0 else [(4.6, 7, 3.6), (9.4, 7, 8.4)]), across=across))
    page.until("vesalius.current.prompter.prompts == 1")
    wanted = np.zeros(VOLUME.shape, np.uint8)
    wanted[(9, slice(5, 10), slice(4, 9)) if across == 0 else (slice(5, 10), 7, slice(4, 9))] = 1
    assert np.array_equal(shown(page, VOLUME.shape), wanted)
    place = [13, 7, 5] if across == 0 else [9, 11, 5]
    page.value(f"vesalius.view.place = {place}")
    page.drag(spots(page, *([(13, 4.6, 3.6), (13, 9.4, 8.4)] if across == 0 else [(4.6, 11, 3.6), (9.4, 11, 8.4)]), across=across))
    page.until("vesalius.current.prompter.prompts == 2")
    page.key("i")  # and the slices between
    page.until("vesalius.current.record.versions.some(v => v.origin.kind == 'interpolated') && !vesalius.current.saver.unsaved")
    wanted[(slice(9, 14), slice(5, 10), slice(4, 9)) if across == 0 else (slice(5, 10), slice(7, 12), slice(4, 9))] = 1
    assert np.array_equal(shown(page, VOLUME.shape), wanted) and np.array_equal(desk.mask(), wanted)
    page.key("z", ctrl=True)
    assert shown(page, VOLUME.shape).sum() == 50, "filling is a step that can be taken back"


def test_a_picture_by_hand(browser, opened):
    """Labels, brush and eraser, undo; a name that is markup stays text."""
    page, desk = browser, opened(2)

    enter(page, desk)
    page.click("#add-label")
    page.until("document.querySelector('.rename') === document.activeElement")
    page.type("<img src=x onerror=alert(1)>")
    page.key("Enter")
    page.until("vesalius.project.labels[1]?.name.startsWith('<img')")
    assert page.until("document.querySelectorAll('.label').length == 2") and page.value("document.querySelector('.labels img')") is None
    assert [x.name for x in desk.project.labels] == ["foreground", "<img src=x onerror=alert(1)>"]
    assert page.value("vesalius.label") == 2

    page.value("vesalius.keep({radius: 1.1})")
    page.key("d")
    page.drag(spots(page, (10, 12, 0), (10, 16, 0), (10, 20, 0)))
    mask = shown(page, PICTURE.shape)
    assert set(np.argwhere(mask == 2)[:, 0]) == {9, 10, 11} and mask[10, 11:22].all() and mask.sum() == 2 * (11 + 2 * 9)
    page.key("e")
    page.drag(spots(page, (10, 16, 0)))
    assert not shown(page, PICTURE.shape)[10, 15:18].any()
    page.key("z", ctrl=True)
    assert np.array_equal(shown(page, PICTURE.shape), mask)
    page.key("1", code="Digit1")
    page.key("b")
    page.drag(spots(page, (2.6, 29.6, 0), (6.4, 35.4, 0)))
    page.until("vesalius.current.prompter.prompts == 1")
    saved(page)
    mask[3:7, 30:36] = 1
    assert np.array_equal(desk.mask(), mask)
    page.key("j")
    page.until("vesalius.current?.record.id == 'c2' && !vesalius.loading")
    assert not shown(page, PICTURE.shape).any()
    assert page.errors == []


def test_outlines_and_lines_through(browser, opened):
    """A lasso fills what it surrounds, or asks the model; a scribble asks it, and with Shift says what does not belong."""
    page, desk = browser, opened(2)
    enter(page, desk, model=None)
    page.value("vesalius.useModel('')")
    page.until("!vesalius.current.prompter")
    page.key("l")
    page.drag(spots(page, (4.6, 5.6, 0), (4.6, 20.4, 0), (12.4, 20.4, 0), (12.4, 5.6, 0), (4.6, 5.6, 0)))
    wanted = np.zeros(PICTURE.shape, np.uint8)
    wanted[5:13, 6:21] = 1
    assert np.array_equal(shown(page, PICTURE.shape), wanted)
    page.key("z", ctrl=True)
    assert not shown(page, PICTURE.shape).any()

    page.value("vesalius.useModel('flat')")
    page.until("vesalius.current.prompter?.state == 'ready'")
    page.key("s")
    page.drag(spots(page, (8, 10, 0), (8, 14, 0), (8, 20, 0)))
    page.until("vesalius.current.prompter.prompts == 1")
    line = shown(page, PICTURE.shape)
    assert line[8, 10] and line[8, 20]
    page.drag(spots(page, (8, 18, 0), (8, 20, 0), (8, 21, 0)), button="right")
    page.until("vesalius.current.prompter.prompts == 2")
    assert not shown(page, PICTURE.shape)[8, 20] and shown(page, PICTURE.shape)[8, 10]
    page.key("n")
    page.key("l")
    page.drag(spots(page, (14.6, 25.6, 0), (14.6, 34.4, 0), (21.4, 34.4, 0), (21.4, 25.6, 0), (14.6, 25.6, 0)))
    page.until("vesalius.current.prompter.prompts == 3")
    assert shown(page, PICTURE.shape)[18, 30] and shown(page, PICTURE.shape)[8, 10]
    saved(page)
    assert np.array_equal(desk.mask(), shown(page, PICTURE.shape))
    assert page.errors == []


def test_what_is_laid_over_the_picture(browser, opened):
    """A model's uncertainty, and two versions compared: the prompts' own lines are not in the way, and the mask comes back."""
    page, desk = browser, opened(2)
    proposal = np.zeros(PICTURE.shape, np.uint8)
    proposal[5:13, 6:21] = 1
    kept = desk.project.save("c1", proposal, None, user="a", origin={"kind": "model", "model": "m"})
    doubt = np.zeros(PICTURE.shape, np.uint8)
    doubt[14:20, 25:35] = 90
    io.atomic_write_bytes(desk.folder / "doubt" / "c1" / f"{kept.id}.nii.gz", encode(doubt[None], PICTURE))
    enter(page, desk)
    mask_at, doubt_at = spots(page, (9, 10, 0), (17, 30, 0))
    assert coloured(page, mask_at) and not coloured(page, doubt_at)
    page.key("u")
    page.until("vesalius.overlay.doubt")
    assert coloured(page, doubt_at) and not coloured(page, mask_at)
    page.key("Escape")
    assert coloured(page, mask_at) and not coloured(page, doubt_at)

    page.key("b")
    page.drag(spots(page, (14.6, 25.6, 0), (19.4, 34.4, 0)))
    page.until("vesalius.current.prompter.prompts == 1")
    saved(page)
    drawn = "!document.querySelector('canvas.ink').hidden"
    page.until(drawn)
    page.value("vesalius.overlay.compare(vesalius.current.record.versions[0].id, vesalius.current.saver.head)")
    page.until("vesalius.overlay.comparison?.rows.length == 1")
    assert coloured(page, mask_at) and coloured(page, doubt_at)
    page.until(f"!({drawn})")
    page.key("Escape")
    page.until(drawn)
    assert page.value("vesalius.overlay.comparison") is None and coloured(page, mask_at)
    assert page.errors == []


def test_words_instead_of_clicks(browser, opened):
    """A model that takes words has a field for them; what means nothing is said."""
    page, desk = browser, opened(2)
    enter(page, desk, model="words")
    page.until("!document.querySelector('[aria-label=\"Say what to outline\"]').closest('form').hidden")
    page.drag([page.centre('[aria-label="Say what to outline"]')])
    page.type("bright")
    page.drag([page.centre(".section form button")])
    page.until("vesalius.current.prompter.prompts == 1")
    saved(page)
    wanted = np.zeros(PICTURE.shape, np.uint8)
    wanted[4:10, 4:10] = 1
    assert np.array_equal(shown(page, PICTURE.shape), wanted) and np.array_equal(desk.mask(), wanted)
    page.drag([page.centre('[aria-label="Say what to outline"]')])
    page.key("End")
    page.type(" moon")
    page.drag([page.centre(".section form button")])
    page.until("document.querySelector('.toast')?.textContent.includes(\"'bright moon' means nothing here\")")
    assert np.array_equal(shown(page, PICTURE.shape), wanted), "what was found before stays"
    page.key("Escape")
    page.key("b")
    page.drag(spots(page, (2.6, 29.6, 0), (6.4, 35.4, 0)))
    page.until("document.querySelector('.toast')?.textContent.includes('does not understand a box')")
    page.value("vesalius.useModel('flat')")
    page.until("document.querySelector('[aria-label=\"Say what to outline\"]').closest('form').hidden")
    assert page.errors == []


def test_a_full_disk(browser, opened, monkeypatch):
    """What cannot be saved stays in the page, which says so, and is saved when there is space again."""
    page, desk = browser, opened(2)
    enter(page, desk, model=None)

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(sys.modules["vesalius.io.atomic"], "_flush", no_space)
        page.key("d")
        page.drag(spots(page, (10, 12, 0), (10, 20, 0)))
        page.until("vesalius.current.saver.state.kind == 'kept' && document.querySelector('#save').textContent.includes('Kept here')")
        assert "full" in page.value("vesalius.current.saver.state.why")
        page.until("vesalius.saving.drafts.size == 1")
        assert desk.project.entry("c1").head is None
    drawn = shown(page, PICTURE.shape)
    saved(page)  # by itself: the page tries again
    assert drawn.any() and np.array_equal(desk.mask(), drawn)
    page.until("vesalius.saving.drafts.size == 0")
    assert page.errors == []


def test_two_people_on_one_case(browser, opened):
    page, desk = browser, opened(2)
    enter(page, desk, model=None)
    theirs = np.zeros(PICTURE.shape, np.uint8)
    theirs[0, 0] = 1
    page.key("d")
    page.drag(spots(page, (10, 12, 0), (10, 20, 0)))
    other = desk.project.save("c1", theirs, None, user="somebody else")
    page.until("vesalius.current.saver.state.kind == 'conflict'")
    page.until("document.querySelector('[data-notice=conflict]')")
    assert len(desk.project.entry("c1").versions) == 2 and desk.project.entry("c1").head == other.id
    page.value("[...document.querySelectorAll('[data-notice=conflict] button')].find(b => b.textContent == 'Compare both').click()")
    page.until("vesalius.overlay.comparison?.rows.length == 1")
    page.value("[...document.querySelectorAll('[data-notice=conflict] button')].find(b => b.textContent == 'Go on with mine').click()")
    page.until("vesalius.current.saver.state.kind == 'saved'")
    assert np.array_equal(desk.mask(), shown(page, PICTURE.shape)) and desk.mask()[10, 16]
    assert len(desk.project.entry("c1").versions) == 3


def test_a_server_that_goes_away(browser, opened):
    """What is drawn meanwhile is saved when it is back, and outlives the page."""
    page, desk = browser, opened(2)
    enter(page, desk)
    page.drag([page.centre("#tool-box")])
    page.drag(spots(page, (2.6, 29.6, 0), (6.4, 35.4, 0)))
    page.until("vesalius.current.prompter.prompts == 1")
    saved(page)
    desk.stop()
    page.key("d")
    page.drag(spots(page, (10, 12, 0), (10, 20, 0)))
    page.until("vesalius.current.saver.state.kind == 'kept' && document.querySelector('#save').textContent.includes('Kept here')")
    drawn = shown(page, PICTURE.shape)
    desk.start()
    saved(page)
    assert np.array_equal(desk.mask(), drawn)
    page.until("vesalius.teller.online")
    page.key("c")
    page.drag(spots(page, (5, 33, 0)))  # the new server never knew the session
    page.until("vesalius.current.prompter.prompts == 2")
    assert shown(page, PICTURE.shape)[3:7, 30:36].all()
    saved(page)

    desk.stop()
    page.key("d")
    page.drag(spots(page, (20, 5, 0), (20, 10, 0)))
    page.until("vesalius.saving.drafts.size == 1")
    drawn = shown(page, PICTURE.shape)
    time.sleep(0.5)
    page.go("about:blank")
    desk.start()
    enter(page, desk, model=None)
    page.until("document.querySelector('[data-notice=draft]')")
    assert not np.array_equal(shown(page, PICTURE.shape), drawn)
    page.value("document.querySelector('[data-notice=draft] button').click()")
    page.until("vesalius.current.saver.state.kind == 'saved' && vesalius.saving.drafts.size == 0")
    assert np.array_equal(desk.mask(), drawn)


@pytest.mark.slow
def test_improve_the_model(browser, tmp_path):
    """Done cases become a model, which proposes a mask for the next case."""
    desk = Desk(project_of(tmp_path, 2, 4))
    try:
        mask = np.zeros(PICTURE.shape, np.uint8)
        mask[4:10, 4:10] = 1
        for case in ("c1", "c2", "c3"):
            desk.project.save(case, mask, None, user="a")
            desk.project.set_status(case, "done")
        page = browser
        enter(page, desk, model=None)
        page.click("#train")
        page.until("!document.querySelector('#train-go').disabled")
        page.value("document.querySelector('dialog input[type=number]').value = '0.05'")
        page.click("#train-go")
        page.until("vesalius.automatic.length == 1", 150)
        page.click("[data-case=c4]")
        page.until("vesalius.current?.record.id == 'c4' && !vesalius.loading")
        page.click("#run-model")
        page.until("vesalius.current.record.versions.length == 1", 60)
        assert desk.project.entry("c4").versions[0].origin["kind"] == "model"
    finally:
        desk.stop()
