"""Connections that never say what they want, in front of a real server."""

import socket
import threading
import time

import pytest
import uvicorn

from tests.serve.desk import image_files
from vesalius.serve import command, patience


async def hello(scope, receive, send):
    if scope["type"] == "http":
        body = b""
        while (message := await receive()).get("more_body", False):
            body += message.get("body", b"")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(patience, "HEADER_SECONDS", 0.5)
    server = uvicorn.Server(uvicorn.Config(hello, http=patience.Impatient, log_level="critical", limit_concurrency=128, lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)


def knock(port, said=b""):
    made = socket.create_connection(("127.0.0.1", port), timeout=10)
    made.sendall(said)
    return made


WHOLE = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


def test_headers_that_do_not_come_are_given_up(port):
    with knock(port, b"GET / HTTP/1.1\r\nhost: local") as slow:
        started = time.monotonic()
        for letter in b"host.example":  # a letter now and then buys no time
            time.sleep(0.03)
            slow.sendall(bytes([letter]))
        assert slow.recv(100).startswith(b"HTTP/1.1 408") and slow.recv(100) == b"" and time.monotonic() - started < 3
    with knock(port) as silent:
        assert silent.recv(100) == b""
    with knock(port, WHOLE) as kept:
        said = b""
        while not said.endswith(b"hi"):
            said += kept.recv(1000)
        kept.sendall(b"GET / HT")
        assert kept.recv(1000).startswith(b"HTTP/1.1 408"), "the second request of a connection too"


def test_a_slow_body_is_not_its_headers(port):
    with knock(port, b"PUT / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\n") as slow:
        for letter in b"abc":
            time.sleep(0.4)
            slow.sendall(bytes([letter]))
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")


def test_half_said_requests_keep_nobody_out(port, monkeypatch):
    monkeypatch.setattr(patience, "HEADER_SECONDS", 60)
    half = [knock(port, b"GET / HTTP/1.1\r\nhost: l") for _ in range(200)]
    try:
        with knock(port, WHOLE) as good:
            assert good.recv(1000).startswith(b"HTTP/1.1 200")
    finally:
        [s.close() for s in half]


def test_the_annotator_serves_so(tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(command._Server, "run", lambda self, sockets: served.append(self.config.http))
    command.serve(image_files(tmp_path, 1, dims=2), project=tmp_path / "p", port=0)
    assert served == [patience.Impatient]
