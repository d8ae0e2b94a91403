"""The annotator's page in a real browser, further: windows, planes, others' labels, label maps of files, exports, signing in again."""

import json
import threading
import time
import urllib.request
import zipfile

import numpy as np

from tests.serve import test_page as first
from tests.serve.desk import PICTURE, TOKEN, VOLUME, project_of
from tests.serve.test_page import Desk, enter, pixel, saved, shown, spots
from vesalius import io
from vesalius.core.geometry import Geometry
from vesalius.serve.images import Images
from vesalius.serve.security import Guard
from vesalius.serve.sources import manifest_of
from vesalius.serve.store import Project

pytestmark = first.pytestmark
browser, opened = first.browser, first.opened
OTHER = "a token of another start"


def asked(desk, verb, path, given=None, **headers):
    """What somebody else asks of the server, and its answer, still open."""
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json", **headers}
    body = None if given is None else json.dumps(given).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{desk.port}{path}", body, headers, method=verb)
    return urllib.request.urlopen(request, timeout=30)


def requests(page):
    return page.value("performance.getEntriesByType('resource').length")


def at_rest(page):
    """All that the page asked for is here."""
    before = -1
    while before != (before := requests(page)):
        time.sleep(0.4)


def test_windows_planes_and_slices(browser, tmp_path):
    """Presets in HU where the values are such, 3D and back, and no request while one scrolls."""
    (tmp_path / "images").mkdir()
    hu = np.full((1, *VOLUME.shape), -1000, np.int16)
    hu[:, 4:16, 4:12, 2:10], hu[:, 8:12, 6:10, 4:8] = 40, 900
    io.write_image(tmp_path / "images" / "ct.nii.gz", hu, VOLUME)
    noise = np.random.default_rng(0).integers(0, 200, (1, *VOLUME.shape)).astype(np.int16)
    io.write_image(tmp_path / "images" / "mr.nii.gz", noise, VOLUME)
    desk, page = Desk(project_of(tmp_path)), browser
    try:
        enter(page, desk, model=None)
        page.until("document.querySelector('#preset option[value=\"CT bone\"]')")
        page.choose("#preset", "CT bone")
        assert page.value("vesalius.view.window") == [-500, 1300] and page.value("vesalius.preset") == "CT bone"
        page.key("w")
        assert page.value("vesalius.preset") == "CT brain" and page.value("vesalius.view.window") == [0, 80]
        page.choose('[aria-label="Lowest grey value"]', "-200")
        assert page.value("vesalius.view.window") == [-200, 80] and page.value("vesalius.preset") == "Own"

        assert page.value("vesalius.view.tiles.length") == 3
        page.value("[...document.querySelectorAll('[aria-label=Planes] button')].find(b => b.textContent == '3D').click()")
        page.until("vesalius.view.plane == 'render' && vesalius.view.tiles.length == 0")
        page.key("a")
        page.until("vesalius.view.plane == 'all' && vesalius.view.tiles.length == 3")

        at_rest(page)
        page.value("performance.clearResourceTimings(); vesalius.view.place = [9, 7, 0]")
        seen = set()
        for _ in range(VOLUME.shape[2] - 1):
            page.key("ArrowUp")
            seen.add(page.value("vesalius.view.place[2]"))
        (x, y) = spots(page, (9, 7, 11))[0]
        for _ in range(5):
            page.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=100)
        page.until("vesalius.view.place[2] != 11")
        time.sleep(0.3)
        assert seen == set(range(1, VOLUME.shape[2])) and requests(page) == 0

        page.key("j")
        page.until("vesalius.current?.record.id == 'c2' && !vesalius.loading")
        page.until("[...document.querySelectorAll('#preset option')].map(o => o.value).join() == 'Auto,Full range'")
        assert page.errors == []
    finally:
        desk.stop()


def test_a_mask_carried_on_a_comment_and_the_next_case(browser, opened):
    page, desk = browser, opened(3)
    enter(page, desk)
    page.value("vesalius.view.place = [9, 7, 5]")
    page.key("b")
    page.drag(spots(page, (3.6, 4.6, 5), (10.4, 8.4, 5)))
    page.until("vesalius.current.prompter.prompts == 1")
    page.key("p")
    page.until("vesalius.current.record.versions.some(v => v.origin.kind == 'propagated') && !vesalius.current.saver.unsaved")
    mask = shown(page, VOLUME.shape)
    assert mask[4:11, 5:9].all() and mask.sum() == 7 * 4 * 12 and np.array_equal(desk.mask(), mask)
    made = desk.project.entry("c1").versions
    assert made[-1].origin["model"] == "flat", "the chosen one"
    assert [(p["kind"], p["label"]) for p in made[0].origin["prompts"]] == [("box", "foreground")]

    page.value("document.querySelector('.section textarea').focus()")
    page.type("<b>carried</b> too far")
    page.value("[...document.querySelectorAll('.section button')].find(b => b.textContent == 'Add').click()")
    page.until("document.querySelector('.comment p')?.textContent == '<b>carried</b> too far'")
    assert desk.project.entry("c1").comments[0]["text"] == "<b>carried</b> too far"

    page.value("document.activeElement.blur()")
    page.key("g")
    page.until("vesalius.teller.toast?.text.includes('Mark it done')")
    page.key("#", code="Digit3", shift=True)
    page.until("document.querySelector('.status .done').getAttribute('aria-pressed') == 'true'")
    page.key("g")
    page.until("vesalius.current?.record.id == 'c2' && !vesalius.loading")
    assert page.errors == []


def test_labels_that_others_change_too(browser, opened):
    """Name, colour, removal; somebody else's table comes by itself, and is not overwritten where it did not."""
    page, desk = browser, opened(2)
    enter(page, desk)
    names = "vesalius.project.labels.map(l => l.name).join()"
    page.value("document.querySelector('.label .link').click()")
    page.until("document.querySelector('.rename') === document.activeElement")
    page.type("lesion")
    page.key("Enter")
    page.until(f"{names} == 'lesion'")
    page.choose('.label input[type="color"]', "#00ff00")
    page.until("vesalius.project.labels[0].color == '#00ff00'")
    assert [(x.name, x.color) for x in desk.project.labels] == [("lesion", "#00ff00")]

    with asked(desk, "GET", "/api/events?user=Anna&tab=a"), asked(desk, "GET", "/api/events?user=Anna&tab=b"):
        page.until("document.querySelector('.people').textContent == '2 people here'")
        theirs = [{"name": "lesion", "value": 1, "color": "#00ff00"}, {"name": "cyst", "value": 2, "color": "#ff0000"}]
        asked(desk, "PUT", "/api/labels", theirs, **{"if-match": page.value("vesalius.project.labels_version")}).close()
        page.until(f"{names} == 'lesion,cyst' && document.querySelectorAll('.label').length == 2")
    page.until("document.querySelector('.people').textContent == ''")

    desk.project.set_labels([*theirs, {"name": "vessel", "value": 3, "color": "#0000ff"}])  # and nobody tells the page
    page.click("#add-label")
    page.until(f"{names} == 'lesion,cyst,vessel,label 4' && document.querySelector('.rename')")
    assert "your change in it" in page.value("vesalius.teller.toast.text") and page.value("vesalius.label") == 4
    page.key("Escape")
    page.value("[...document.querySelectorAll('.label.active button')].find(b => b.textContent == 'Remove').click()")
    page.until(f"{names} == 'lesion,cyst,vessel' && vesalius.label == 1")
    assert [x.name for x in desk.project.labels] == ["lesion", "cyst", "vessel"]

    page.key("x")
    page.drag(spots(page, (15, 30, 0)))  # nothing is there to take away from
    page.until("vesalius.teller.toast?.text.includes('Draw a box around it first')")
    page.key("d")
    page.drag(spots(page, (10, 12, 0), (10, 20, 0)))
    page.value("vesalius.removeLabel(vesalius.project.labels[0])")
    page.until("vesalius.teller.toast?.text.includes('is drawn in this case')")
    saved(page)
    page.value("vesalius.removeLabel(vesalius.project.labels[1])")
    page.until("vesalius.teller.toast?.text.includes('labels of saved masks cannot be removed')")
    assert page.errors == []


def test_labels_of_the_data_set_and_of_files(browser, tmp_path):
    """Two images of a case, the label it comes with, and a mask that another program wrote."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    for name in ("t1", "t2", "mask"):
        (folder / name).mkdir(parents=True)
    brought = np.zeros(VOLUME.shape, np.uint8)
    brought[3:9, 4:9, 2:7] = 1
    rows = ["case,patient,split,image:T1,image:T2,label:reference"]
    for k in range(2):
        for name, low in (("t1", 0), ("t2", 500)):
            image = rng.integers(low, low + 100, (1, *VOLUME.shape)).astype(np.int16)
            io.write_image(folder / name / f"{k}.nii.gz", image, VOLUME)
        io.write_labels(folder / "mask" / f"{k}.nii.gz", brought, VOLUME)
        rows.append(f"case{k},p{k},train,t1/{k}.nii.gz,t2/{k}.nii.gz," + ("" if k else "mask/0.nii.gz"))
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    facts = 'name = "two"\nmodality = "MR"\ndims = 3\nlicence = "none"\nsource = "made"\n[labels]\nbackground = 0\norgan = 1\n'
    (folder / "dataset.toml").write_text(facts)
    desk, page = Desk(Project(tmp_path / "project", manifest_of(folder))), browser
    try:
        enter(page, desk, model=None)
        assert page.value("vesalius.channel") == "T1" and page.value("+vesalius.view.valueAt([9, 7, 5])") < 100
        page.choose('[aria-label="Image"]', "T2")
        page.until("vesalius.channel == 'T2' && +vesalius.view.valueAt([9, 7, 5]) >= 500")

        page.value("document.querySelector('#reference').click()")
        page.until("vesalius.current.saver.unsaved || vesalius.current.saver.head")
        assert np.array_equal(shown(page, VOLUME.shape), brought)
        saved(page)
        assert np.array_equal(desk.mask(), brought)
        page.key("z", ctrl=True)
        assert not shown(page, VOLUME.shape).any(), "a step that can be taken back"
        saved(page)

        other = np.zeros(VOLUME.shape, np.uint8)
        other[10:14, 4:9, 2:7] = 1
        io.write_labels(tmp_path / "of Slicer.nii.gz", other, VOLUME)
        page.upload("#mask-file", tmp_path / "of Slicer.nii.gz")
        page.until("document.querySelector('.version .from')?.textContent.startsWith('from file of Slicer.nii.gz')")
        page.until("!vesalius.current.saver.unsaved && vesalius.current.saver.state.kind == 'saved'")
        assert np.array_equal(shown(page, VOLUME.shape), other) and np.array_equal(desk.mask(), other)
        page.upload("#mask-file", folder / "t2" / "0.nii.gz")
        page.until("vesalius.teller.toast?.bad")
        assert np.array_equal(desk.mask(), other)

        page.key("j")
        page.until("vesalius.current?.record.id == 'c2' && !vesalius.loading && document.querySelector('#reference').hidden")
        assert page.value("vesalius.channel") == "T2" and page.errors == []
    finally:
        desk.stop()


def test_every_format(browser, opened):
    """What the export window offers for pictures comes down as a file."""
    page, desk = browser, opened(2)
    mask = np.zeros(PICTURE.shape, np.uint8)
    mask[4:10, 4:10] = 1
    desk.project.save("c1", mask, None, user="a")
    enter(page, desk, model=None)
    wanted = {"nifti": ".nii.gz", "dataset": "dataset.toml", "png": ".png", "coco": ".json"}
    page.click("#export")
    assert page.value("[...document.querySelectorAll('dialog input[name=format]')].map(i => i.value)") == list(wanted)
    page.value("document.querySelector('dialog').close()")
    for k, (name, ending) in enumerate(wanted.items(), 1):
        for file in page.downloads.glob("*.zip"):
            file.unlink()
        page.click("#export")
        page.value(f"document.querySelector('dialog input[value={name}]').click()")
        page.click("#export-go")
        page.until(f"vesalius.jobs.list.filter(j => j.kind == 'export' && j.state == 'done').length == {k}")
        for _ in range(100):
            if files := list(page.downloads.glob("*.zip")):
                break
            time.sleep(0.1)
        with zipfile.ZipFile(files[0]) as archive:
            assert any(n.endswith(ending) for n in archive.namelist()), archive.namelist()
    assert page.errors == []


def test_signed_out_and_in_again(browser, opened):
    """A server that was started anew has another token: what is drawn is kept, and with the new link all goes on, without a reload."""
    page, desk = browser, opened(2)
    enter(page, desk, model=None)
    desk.stop()
    desk.start(Guard(OTHER))
    page.until("document.querySelector('[data-notice=signin]')")
    page.key("d")
    page.drag(spots(page, (10, 12, 0), (10, 20, 0)))
    page.until("vesalius.current.saver.state.kind == 'kept' && vesalius.saving.drafts.size == 1")
    assert desk.mask() is None and not page.value("!!document.querySelector('[data-notice=offline]')")
    page.value(f"fetch('/open?token={OTHER.replace(' ', '%20')}')")  # the new link, in another tab
    page.until("!document.querySelector('[data-notice=signin]') && vesalius.teller.online")
    saved(page)
    assert np.array_equal(desk.mask(), shown(page, PICTURE.shape)) and desk.mask().any()
    page.until("vesalius.people.length == 1")
    asked(desk, "PUT", "/api/cases/c2/status", {"status": "done"}, authorization=f"Bearer {OTHER}").close()
    page.until("vesalius.cases[1].status == 'done'")  # events come again
    assert [e for e in page.errors if "401" not in e] == []


def test_drafts_of_another_project_at_the_same_address(browser, opened, tmp_path):
    """Two projects of loose files are called alike, and so may be their cases: neither is offered the other's edits."""
    page, desk = browser, opened(2)
    enter(page, desk, model=None)
    desk.stop()
    page.key("d")
    page.drag(spots(page, (10, 12, 0), (10, 20, 0)))
    page.until("vesalius.saving.drafts.size == 1")
    (tmp_path / "other").mkdir()
    mine, desk.project = desk.project, project_of(tmp_path / "other", 2)
    desk.start()
    page.until("vesalius.teller.notices.some(n => n.text.includes('Another project'))")
    page.value("vesalius.current.saver.flush()")
    assert page.value("vesalius.current.saver.unsaved") and not desk.project.entry("c1").versions
    desk.stop()
    desk.project, theirs = mine, desk.project
    desk.start()
    saved(page)
    assert np.array_equal(desk.mask(), shown(page, PICTURE.shape)), "the page goes on where its own project is back"

    desk.stop()
    page.drag(spots(page, (14, 12, 0), (14, 20, 0)))
    page.until("vesalius.saving.drafts.size == 1")
    page.go("about:blank")
    desk.project = theirs
    desk.start()
    enter(page, desk, model=None)
    assert page.value("vesalius.saving.drafts.size") == 1 and not page.value("!!document.querySelector('[data-notice=draft]')")
    assert page.value("vesalius.cases.some(c => vesalius.saving.hasDraft(c))") is False


def test_a_large_volume_is_first_seen_coarsely(browser, tmp_path, monkeypatch):
    """Every voxel that is shown lies where it does in the whole image, which then takes its place; tools wait for that."""
    (tmp_path / "images").mkdir()
    shape, at, there = (264, 260, 250), (201, 60, 31), threading.Event()
    geometry = Geometry(shape, np.diag([-1.0, -1.0, 2.0, 1.0]))
    hu = np.full((1, *shape), -1000, np.int16)
    hu[:, 195:207, 54:66, 25:37] = 700
    io.write_image(tmp_path / "images" / "ct.nii.gz", hu, geometry)
    whole = Images.whole
    monkeypatch.setattr(Images, "whole", lambda *given: there.wait(60) and whole(*given))
    desk, page = Desk(project_of(tmp_path)), browser
    try:
        page.go(f"http://127.0.0.1:{desk.port}/open?token={TOKEN}")
        page.until("vesalius?.view?.grid")
        assert page.value("vesalius.view.grid.shape") == [88, 87, 125] and not page.value("vesalius.ready")
        page.until("document.querySelector('.loading.seen')?.textContent.includes('coarse')")
        (x, y, z), world = (n // e for n, e in zip(at, (3, 3, 2), strict=True)), [-201, -60, 60]
        page.picture(tmp_path / "coarse.png")
        value = f"vesalius.view.valueAt([{x}, {y}, {z}])"
        page.value(f"vesalius.view.place = [{x + 2}, {y}, {z}]")
        assert min(pixel(page, *spots(page, (x, y - 1, z)))) > 200 and max(pixel(page, *spots(page, (x - 9, y - 5, z)))) < 40
        assert page.value(value) == "700" and page.value("vesalius.view.valueAt([20, 66, 94])") == "-1000"
        assert page.value(f"vesalius.view.grid.affine.slice(0, 3).map((r) => r[0] * {x} + r[1] * {y} + r[2] * {z} + r[3])") == world
        there.set()
        page.until("vesalius.ready && !vesalius.loading")
        assert page.value("vesalius.view.grid.shape") == list(shape) and page.value(f"vesalius.view.valueAt({list(at)})") == "700"
        assert page.value("vesalius.view.tiles.length") == 3 and page.value("vesalius.view.rendered(vesalius.view.grid)") is False
        page.value(f"vesalius.view.place = {[at[0] + 4, *at[1:]]}")
        assert min(pixel(page, *spots(page, (at[0], at[1] - 3, at[2])))) > 200
        assert max(pixel(page, *spots(page, (at[0] - 30, at[1] - 9, at[2])))) < 40
        page.value("vesalius.view.setWindow(-3000, -900)")
        assert min(pixel(page, *spots(page, (at[0] - 30, at[1] - 9, at[2])))) > 200, "a window is drawn afresh"
        assert page.value("vesalius.view.nv.gl.getError()") == 0
    finally:
        there.set()
        desk.stop()


def test_without_a_graphics_card_a_table_gives_a_large_image_the_shaders_colours(browser, tmp_path):
    """Whatever order and direction the file's axes have."""
    (tmp_path / "images").mkdir()
    i, j, k = np.ogrid[:250, :264, :260]
    values = (3 * i + 5 * (j % 90) - 2 * k + 40 * (i * j % 7)).astype(np.int16)[None]
    geometry = Geometry(values.shape[1:], np.array([[0, 0, -1.0, 20], [2.0, 0, 0, 3], [0, -1.5, 0, 7], [0, 0, 0, 1]]))
    io.write_image(tmp_path / "images" / "ct.nii.gz", values, geometry)
    read = """(() => {
      const {view} = vesalius, {gl} = view.nv, [nx, ny, nz] = view.layout.sides, found = [];
      const buffer = gl.createFramebuffer();
      gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
      for (const z of [0, 77, nz - 1]) {
        const bytes = new Uint8Array(4 * nx * ny);
        gl.framebufferTextureLayer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, view.nv.volumeTexture, 0, z);
        gl.readPixels(0, 0, nx, ny, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
        found.push(bytes);
      }
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.deleteFramebuffer(buffer);
      return found;
    })()"""
    desk, page = Desk(project_of(tmp_path)), browser
    try:
        page.go(f"http://127.0.0.1:{desk.port}/open?token={TOKEN}")
        page.until("vesalius.ready && !vesalius.loading")
        assert page.value("vesalius.view.software") is True, "this test needs a browser that draws on the processor"
        page.value("vesalius.view.setWindow(100, 700)")
        page.value(f"window.tabled = {read}; 0")
        page.value("vesalius.view.software = false; vesalius.view.setWindow(99, 700); vesalius.view.setWindow(100, 700)")
        page.value(f"window.shaded = {read}; 0")
        far = "Math.max(...tabled.map((a, z) => a.reduce((most, v, n) => Math.max(most, Math.abs(v - shaded[z][n])), 0)))"
        assert page.value(far) <= 2 and page.value("new Set(tabled[1]).size") > 200
    finally:
        desk.stop()
