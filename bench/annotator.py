"""The annotator over HTTP and on its page: click to mask, ten people at once, and how soon a large CT is shown.

    .venv/bin/python bench/annotator.py            writes bench/results/annotator.json (with --quick it only prints: smaller all over)

``vesalius annotate`` runs as a process of its own, as for a user, and is talked to over localhost. LiteMedSAM needs its weights
(``make setup``). Clicks are on a 1024 x 1024 picture, after it was embedded: the seconds of the server (``ms`` of its answers) and those
until the answer is here. Ten simulated annotators each have a session of their own: they click, save, and now and then save onto a version
that somebody has saved onto already; what counts is that every mask that was sent can be had again, and how much longer a click takes for
19 in 20 of them than for one alone. The CT is one of noise in a body, as in bench/reading.py, asked for before and after the server has it
ready.

The page's own figures are those of a headless Chromium (Debian's) that draws in software, on the same cores as the server: from letting go
of the mouse button, a box each, to the mask on the screen; from following the link to a picture of the CT, a coarse one, and to the whole
one; and the requests while one scrolls through its slices.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

import numpy as np
import table
from reading import make as make_ct

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.serve.browser import Browser, annotating, chromium  # noqa: E402 - lends its driver

SIDE, CLICKS, PEOPLE, EDITS, SLICES = 1024, 40, 10, 6, 50
CT = (512, 512, 400)
CLICK_MS, PAGE_MS, FIRST, WHOLE = 120, 250, 3.0, 8.0
TOKEN = "token-of-this-benchmark"
# runs before the page's own scripts: when the button was let go, when the first picture and the whole image were there, and `frame`, the
# time when all is drawn
CLOCK = """
const frame = () => (vesalius.view.nv.gl.readPixels(0, 0, 1, 1, 6408, 5121, new Uint8Array(4)), performance.now());
addEventListener('pointerup', () => (window.released = performance.now()), {capture: true});
(function look() {
  if (window.vesalius?.view?.grid) window.firstAt ??= frame();
  if (window.vesalius?.current && !vesalius.loading) window.shownAt = frame();
  else requestAnimationFrame(look);
})();
"""


class Client:
    """One person: a connection that stays open."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def send(self, verb: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        self.connection.request(verb, path, body, {"authorization": f"Bearer {TOKEN}", **headers})
        return self.connection.getresponse()

    def json(self, verb: str, path: str, given: object | None = None, **headers: str) -> dict:
        body = None if given is None else json.dumps(given).encode()
        answer = self.send(verb, path, body, **{"content-type": "application/json"}, **headers)
        record = json.loads(answer.read() or b"{}")
        if answer.status >= 400:
            sys.exit(f"{verb} {path}: {answer.status} {record}")
        return record

    def session(self, case: str) -> str:
        """A session that is ready."""
        session = self.json("POST", "/api/sessions", {"case": case, "model": "lite-medsam"})["session"]
        while (state := self.json("GET", f"/api/sessions/{session}"))["state"] == "embedding":
            time.sleep(0.02)
        if state["state"] != "ready":
            sys.exit(f"the image could not be embedded: {state['error']}")
        return session

    def click(self, session: str, at: np.ndarray, name: str) -> tuple[float, float, dict]:
        """(ms until the answer is here, ms of the server, the answer)."""
        start = time.perf_counter()
        prompts = [{"kind": "point", "xyz": at.tolist()}]
        answer = self.json("POST", f"/api/sessions/{session}/prompts", {"object": name, "prompts": prompts})
        return 1000 * (time.perf_counter() - start), answer["ms"], answer

    def save(self, case: str, mask: np.ndarray, parent: str) -> tuple[int, str]:
        """(status, the version that the mask is kept as)."""
        headers = {"x-shape": ",".join(map(str, mask.shape)), "x-dtype": "uint8"}
        answer = self.send("PUT", f"/api/cases/{case}/label?parent={parent}", gzip.compress(mask.tobytes(), 1), **headers)
        record = json.loads(answer.read())
        return answer.status, record.get("yours") or record.get("version") or ""


@contextlib.contextmanager
def served(files: list[Path], project: Path) -> Iterator[int]:
    """The port of ``vesalius annotate``."""
    with annotating(*files, project=project, token=TOKEN) as link:
        yield urlsplit(link).port


def pictures(folder: Path, count: int, side: int) -> list[Path]:
    """Smooth blobs with noise, as .png."""
    from PIL import Image
    from scipy.ndimage import zoom

    for n in range(count):
        rng = np.random.default_rng(n)
        coarse = zoom(rng.random((12, 12)), side / 12, order=1)[:side, :side]
        grey = (60 + 140 * (coarse > 0.55) + rng.normal(0, 8, coarse.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"picture{n}.png")
    return sorted(folder.glob("picture*.png"))


def clicks(port: int, side: int, count: int) -> dict:
    """Medians, ms: of the server, and until the answer is here; and the seconds of the embedding."""
    client, rng = Client(port), np.random.default_rng(0)
    start = time.perf_counter()
    session = client.session("c1")
    embedding = time.perf_counter() - start
    client.click(session, np.array([side / 2, side / 2]), "first")
    took = [client.click(session, rng.uniform(0.1, 0.9, 2) * side, f"object {k}") for k in range(count)]
    here, server, _ = zip(*took, strict=True)
    return {"server_ms": round(median(server), 1), "here_ms": round(median(here), 1), "seconds_until_embedded": round(embedding, 3)}


def people(port: int, count: int, edits: int, side: int) -> dict:
    """``count`` annotators at once, each ``edits`` clicks and saves: the 95th percentile of a click, and what became of every mask."""
    times, saved, conflicts, lock = [], [], [], threading.Lock()
    ready = threading.Barrier(count)

    def work(k: int) -> None:
        client, rng = Client(port), np.random.default_rng(k)
        case = f"c{1 + k // 2}"  # two people a case: each saves onto what it saved last, so the other is told of a conflict
        session, parent = client.session(case), "none"
        client.connection.close()  # the server would, while the others' pictures are embedded; the next request opens it again
        ready.wait()
        for edit in range(edits):
            here, _, answer = client.click(session, rng.uniform(0.1, 0.9, 2) * side, f"object {edit}")
            mask = unpacked(answer, (side, side))
            mask[0, :16] = [int(b) for b in f"{256 * k + edit:016b}"]  # no two are the same
            status, version = client.save(case, mask, parent)
            with lock:
                times.append(here)
                saved.append((case, version, mask))
                conflicts.append(status == 409)
            parent = version if status == 201 else client.json("GET", f"/api/cases/{case}")["latest"]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = Client(port)
    lost = sum(not np.array_equal(kept(client, case, version), mask) for case, version, mask in saved)
    if len(saved) != count * edits:
        sys.exit(f"an annotator gave up: {len(saved)} of {count * edits} masks were sent")
    return {"p95_ms": round(quantiles(times, n=20)[-1], 1), "saved": len(saved), "conflicts": sum(conflicts), "lost": lost}


def unpacked(answer: dict, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of an answer on the whole picture."""
    out, size = np.zeros(shape, np.uint8), answer["size"]
    if min(size):
        bits = np.frombuffer(gzip.decompress(base64.b64decode(answer["bits"])), np.uint8)
        place = tuple(slice(a, a + n) for a, n in zip(answer["low"], size, strict=True))
        out[place] = np.unpackbits(bits, count=int(np.prod(size))).reshape(size)
    return out


def kept(client: Client, case: str, version: str) -> np.ndarray:
    """A saved mask, as the page gets it."""
    import nibabel as nib

    content = client.send("GET", f"/api/cases/{case}/label?version={version}").read()
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)[..., 0].T


def picture(port: int) -> dict:
    """Seconds until a volume's first byte and until it is whole, twice: before the server has it ready and after."""
    out = {}
    for when in ("first", "again"):
        start = time.perf_counter()
        answer = Client(port).send("GET", "/api/cases/c1/image/image")
        answer.read(1)
        begun, size = time.perf_counter() - start, 1
        while part := answer.read(1 << 20):
            size += len(part)
        out[when] = {"seconds_to_first_byte": round(begun, 3), "seconds": round(time.perf_counter() - start, 3)}
    return {**out, "mib": round(size / 2**20, 1)}


@contextlib.contextmanager
def paged(port: int) -> Iterator[tuple[Browser, list[float]]]:
    """The annotator in a new browser, and the seconds until a picture of the first case was on the screen, and all of it."""
    with Browser() as page:
        page.send("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
        page.go(f"http://127.0.0.1:{port}/open?token={TOKEN}")
        page.until("window.shownAt", 300)
        yield page, [round(ms / 1000, 3) for ms in page.value("[firstAt, shownAt]")]


def page_clicks(port: int, side: int, count: int) -> float:
    """Median ms from letting go of the mouse button to the mask on the screen."""
    rng, took = np.random.default_rng(0), []
    with paged(port) as (page, _):
        page.until("vesalius.current.prompter?.state == 'ready'", 300)
        page.key("b")
        for k in range(count + 1):  # the first is not counted
            low = rng.uniform(0.1, 0.6, 2) * side
            corners = json.dumps([[*low, 0], [*(low + 0.3 * side), 0]])
            spots = page.value(
                f"""(() => {{ const v = vesalius.view, box = v.canvas.getBoundingClientRect(), tile = v.tiles[0];
                return {corners}.map(at => v.screenAt(tile, at)).map(([x, y]) => [box.x + x / v.pixels, box.y + y / v.pixels]) }})()"""
            )
            page.drag(spots)
            answered = f"vesalius.current.prompter.prompts == {k + 1} && vesalius.lastAnswer.includes('ms')"
            look = f"(function look() {{ {answered} ? done(frame() - released) : requestAnimationFrame(look) }})()"
            took.append(page.value(f"new Promise(done => {look})"))
    return round(median(took[1:]), 1)


def page_volume(port: int, slices: int) -> dict:
    """Seconds until a picture of a volume is on the screen and until all of it is, before the server has it ready and after; ms a slice
    and requests while one scrolls."""
    with paged(port) as (page, first):
        pass
    with paged(port) as (page, again):
        time.sleep(2)
        page.value("performance.clearResourceTimings(); vesalius.view.place = [0, 0, 0]")
        start = time.perf_counter()
        for _ in range(slices):
            page.key("ArrowUp")
            page.value("frame()")
        scrolling = time.perf_counter() - start
        if (at := page.value("vesalius.view.place[2]")) != slices:
            sys.exit(f"the page scrolled to slice {at}, not {slices}")
        time.sleep(1)
        requests = page.value("performance.getEntriesByType('resource').length")
    shown = {"seconds_to_picture_and_whole": {"first": first, "again": again}}
    return {**shown, "slices": slices, "ms_a_slice": round(1000 * scrolling / slices, 1), "requests_while_scrolling": requests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small picture and CT, few clicks; nothing is written")
    quick = parser.parse_args().quick
    if chromium() is None:
        sys.exit("There is no Chromium, which the page's figures need: apt-get install chromium.")
    side, count, edits, ct = (256, 5, 2, (64, 64, 40)) if quick else (SIDE, CLICKS, EDITS, CT)
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        files = pictures(folder, PEOPLE // 2, side)
        with served(files[:1], folder / "one") as port:
            click = clicks(port, side, count)
            click["page_ms"] = page_clicks(port, side, count)
        with served(files, folder / "alone") as port:
            alone = people(port, 1, edits * 2, side)
        with served(files, folder / "ten") as port:
            ten = people(port, PEOPLE, edits, side)
        make_ct(folder / "ct.nii.gz", ct)
        with served([folder / "ct.nii.gz"], folder / "volume") as port:
            shown = picture(port)
        with served([folder / "ct.nii.gz"], folder / "volume on the page") as port:
            seen = page_volume(port, min(SLICES, ct[2] - 1))
    (first, whole), (_, again) = seen["seconds_to_picture_and_whole"].values()
    command, embedded = ".venv/bin/python bench/annotator.py", 1000 * click["seconds_until_embedded"]
    results = [
        table.result(
            f"lite-medsam, click to mask on a {side}x{side} picture after embedding ({click['server_ms']:.0f} ms on the server)",
            f"the picture embedded for every click ({embedded:.0f} ms more)",
            f"median < {CLICK_MS} ms on the server",
            (click["server_ms"] + embedded) / click["server_ms"],
            command,
            met=click["server_ms"] < CLICK_MS,
            details=click,
        ),
        table.result(
            f"the same on the page: {click['page_ms']:.0f} ms from the mouse button to the mask on the screen",
            f"the answer over HTTP alone ({click['here_ms']:.0f} ms)",
            f"median < {PAGE_MS} ms on the page",
            click["here_ms"] / click["page_ms"],
            command,
            met=click["page_ms"] < PAGE_MS,
            details=click,
        ),
        table.result(
            f"{PEOPLE} simulated annotators at once, {ten['saved']} masks saved, {ten['conflicts']} conflicts, {ten['lost']} lost: "
            "95th percentile of a click",
            f"one annotator alone (in one queue they would have {1 / PEOPLE:g})",
            "no lost edit",
            alone["p95_ms"] / ten["p95_ms"],
            command,
            met=ten["lost"] == alone["lost"] == 0,
            details={"alone": alone, "ten": ten},
        ),
        table.result(
            f"{'x'.join(map(str, ct))} CT ({shown['mib']:.0f} MiB sent), whole in {shown['first']['seconds']:.1f} s",
            f"asked for again ({shown['again']['seconds']:.1f} s)",
            f"whole < {WHOLE:g} s",
            shown["first"]["seconds"] / shown["again"]["seconds"],
            command,
            met=shown["first"]["seconds"] < WHOLE,
            details=shown,
        ),
        table.result(
            f"the same on the page: a coarse picture after {first:.1f} s, whole after {whole:.1f} s; "
            f"{seen['requests_while_scrolling']} requests while {seen['slices']} slices are scrolled, {seen['ms_a_slice']:.0f} ms each",
            f"opened again ({again:.1f} s)",
            f"first picture < {FIRST:g} s, whole < {WHOLE:g} s, no request per slice",
            whole / again,
            command,
            met=first < FIRST and whole < WHOLE and seen["requests_while_scrolling"] == 0,
            details=seen,
        ),
    ]
    print(json.dumps(results, indent=1))
    if not quick:
        table.write("annotator", results)


if __name__ == "__main__":
    main()
