"""Who may talk to the server, and how much they may say."""

import asyncio
import html
import logging

import numpy as np
import pytest

from tests.serve.desk import TOKEN, VOLUME, client_of, project_of, put, raw
from vesalius.core.errors import DataError, UsageError
from vesalius.serve import security
from vesalius.serve.security import MOST_BODY, Gate, Guard, new_token
from vesalius.serve.wire import in_folder


@pytest.fixture
def project(tmp_path):
    return project_of(tmp_path)


@pytest.fixture
def client(project):
    return client_of(project)


@pytest.fixture
def stranger(project):
    return client_of(project, signed_in=False)


def test_nothing_is_told_without_the_token(stranger, client):
    for path, verbs in client.app.openapi()["paths"].items():
        for verb in verbs:
            if path not in ("/auth/", "/auth/token"):
                answer = stranger.request(verb, path.replace("{case}", "c1"))
                assert answer.status_code in (401, 429), (verb, path)
    for path in ("/docs", "/openapi.json"):
        assert stranger.get(path).status_code in (401, 429) and client.get(path).status_code == 200
    assert client.get("/api/project").status_code == 200, "who has the token is let in all the same"


def test_the_rest_reference_reads_well_and_needs_no_other_site(client):
    schema, page = client.app.openapi(), client.get("/docs").text
    ways = [way for verbs in schema["paths"].values() for way in verbs.values()]
    names = [way["operationId"] for way in ways]
    assert len(set(names)) == len(names) > 40 and all(name.isidentifier() and len(name) > 3 for name in names)
    assert all(way["tags"] and 3 < len(way["summary"]) < 100 for way in ways)
    assert all(
        html.escape(text) in page for path, verbs in schema["paths"].items() for text in (path, *(w["summary"] for w in verbs.values()))
    )
    assert "//" not in page.replace("://", "").lower() and "<script" not in page and "http" not in page


def test_wrong_tokens(stranger):
    for given in ("Bearer wrong", f"Basic {TOKEN}", "Bearer", f"bearer {TOKEN}x", "Bearer \xe9"):
        answer = stranger.get("/api/project", headers={"authorization": given.encode("latin-1")})
        assert answer.status_code == 401 and TOKEN not in answer.text
    assert stranger.get("/api/project", params={"token": TOKEN}).status_code == 401, "a token in a URL is none"
    assert [stranger.get("/api/project").status_code for _ in range(25)][-1] == 429
    assert stranger.get("/api/project", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_link_sets_a_cookie_and_leaves_no_token_in_the_url(stranger):
    assert stranger.get("/open", params={"token": "wrong"}).status_code == 401
    answer = stranger.get("/open", params={"token": TOKEN}, follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303 and answer.headers["location"] == "/" and TOKEN not in cookie
    assert "httponly" in cookie and "samesite=strict" in cookie and "vesalius-8421=" in cookie
    assert stranger.get("/api/project").status_code == 200, "the cookie suffices"
    stranger.cookies.clear()
    assert stranger.get("/api/project", headers={"cookie": "vesalius-8421=guess; other=1"}).status_code == 401


def test_other_hosts_and_sites_are_refused(client):
    for host in ("evil.example", "127.0.0.1.evil.example:8421", "", "[::1", "localhost@evil.example"):
        assert client.get("/api/project", headers={"host": host}).status_code == 403, host
    for host in ("localhost:8421", "127.0.0.1", "[::1]:8421"):
        assert client.get("/api/project", headers={"host": host}).status_code == 200, host
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost"):
        assert client.put("/api/cases/c1/status", json={"status": "done"}, headers={"origin": origin}).status_code == 403
    cross = {"sec-fetch-site": "cross-site"}
    assert client.put("/api/cases/c1/status", json={"status": "done"}, headers=cross).status_code == 403
    own = client.put("/api/cases/c1/status", json={"status": "done"}, headers={"origin": "http://127.0.0.1:8421"})
    assert own.status_code == 200 and not any(h.startswith("access-control") for h in own.headers)


def test_bodies_end_at_the_limit(project):
    client = client_of(project, most_body=1000)
    mask = np.random.default_rng(0).integers(0, 2, VOLUME.shape).astype(np.uint8)
    sent = raw(np.concatenate([mask] * 40))
    assert len(sent["content"]) > 1000
    assert client.put("/api/cases/c1/label?parent=none", **sent).status_code == 413

    def endless():
        for _ in range(100):
            yield b"x" * 100

    chunked = client.put("/api/cases/c1/label?parent=none", content=endless())
    assert chunked.status_code == 413 and "content-length" not in chunked.request.headers
    assert client.post("/api/sessions", content=b"[" * 2000).status_code == 413
    zipped = client.post("/api/sessions", content=b"x", headers={"content-encoding": "gzip"})
    assert zipped.status_code == 415
    assert client.get("/api/project", headers={"content-length": "4e9"}).status_code == 400
    assert put(client, "c1", np.zeros(VOLUME.shape, np.uint8)).status_code == 201


def test_a_huge_upload_is_refused_by_its_length_alone(client):
    taken = []

    def body():
        taken.append(1)
        yield b"x"

    for path in ("/api/cases/c1/label?parent=none", "/datastore/?image=x", "/api/comments"):
        answer = client.put(path, content=body(), headers={"content-length": str(10 * 2**30)})
        assert answer.status_code == 413 and answer.headers["connection"] == "close" and answer.json()["error"] == "that is too large"
    assert MOST_BODY < 10 * 2**30
    assert client.get("/info/", headers={"content-length": str(MOST_BODY)}).status_code == 200, "a length without a body"


def test_a_form_of_very_many_parts_is_refused(client):
    parts = "".join(f'--b\r\nContent-Disposition: form-data; name="p{k}"\r\n\r\n1\r\n' for k in range(2000)) + "--b--\r\n"
    answer = client.put("/datastore/", params={"image": "a"}, content=parts, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400 and answer.json()["error"]


def test_a_body_that_dawdles_is_given_up(monkeypatch):
    monkeypatch.setattr(security, "CHUNK_SECONDS", 0.05)
    sent = []

    async def app(scope, receive, send):
        message = await receive()
        assert message["type"] == "http.disconnect"

    async def never():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]
    scope = {"type": "http", "method": "PUT", "path": "/api/x", "headers": headers}
    asyncio.run(Gate(app, Guard(TOKEN))(scope, never, send))
    assert sent[0]["status"] == 408
    closed = []

    async def close(message):
        closed.append(message)

    asyncio.run(Gate(app, Guard(TOKEN))({"type": "websocket"}, never, close))
    assert closed == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    "odd", ["..%2f..%2fetc%2fpasswd", "c1%00", "..\\..", "%2e%2e", "C1", "c01x", "\u2024\u2024", "c999999999999", "-1"]
)
def test_names_never_become_paths(client, odd):
    for path in (f"/api/cases/{odd}", f"/api/cases/{odd}/label", f"/api/cases/c1/image/{odd}", f"/api/jobs/{odd}/file", f"/assets/{odd}"):
        answer = client.get(path)
        assert answer.status_code in (400, 404), path
        assert "root:" not in answer.text
    assert client.get("/api/cases/c1/label", params={"version": f"../../{odd}"}).status_code == 404


def test_links_out_of_the_project_are_not_followed(client, project, tmp_path):
    version = put(client, "c1", np.zeros(VOLUME.shape, np.uint8)).json()["version"]
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    file = project.folder / "masks" / "c1" / f"{version}.nii.gz"
    file.unlink()
    file.symlink_to(secret)
    answer = client.get("/api/cases/c1/label")
    assert answer.status_code == 400 and b"secret" not in answer.content
    with pytest.raises(DataError, match="does not lie"):
        in_folder(file, project.folder)


def test_pages_may_do_little_and_answers_are_not_kept(client):
    answer = client.get("/api/project")
    policy = answer.headers["content-security-policy"]
    assert "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy and "'unsafe-eval'" not in policy
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").status_code == 200


def test_the_log_names_nobody(client, caplog):
    with caplog.at_level(logging.INFO, "vesalius.serve"):
        client.get("/api/cases/c1?token=ZZPHI")
        client.get("/open?token=ZZPHI")
        client.get("/api/cases/ZZPHI")
    assert "/api/cases/{case}" in caplog.text and "ZZPHI" not in caplog.text and "c1" not in caplog.text


def test_a_token_of_ones_own_is_long(monkeypatch):
    monkeypatch.setenv("VESALIUS_TOKEN", "short")
    with pytest.raises(UsageError, match="too short"):
        new_token()
    monkeypatch.setenv("VESALIUS_TOKEN", "long enough to be one")
    assert new_token() == "long enough to be one"
    monkeypatch.delenv("VESALIUS_TOKEN")
    assert len(new_token()) > 40 and new_token() != new_token()
