"""Who may talk to the server: token, cookie, Host and Origin, body sizes; headers for the browser; a log without names.

Everything but the page's own files and the sign-in wants the token, as ``Authorization: Bearer`` or as the cookie that ``/open`` sets. The
Host header must be one of ours (a DNS name that was rebound to this machine is refused), and what changes something must come from our own
page or from no page at all. The cookie holds a digest of the token, is not readable by scripts and is not sent from other sites.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import UsageError

log = logging.getLogger("vesalius.serve")
MOST_BODY = 512 * 2**20
MOST_SMALL = 16 * 2**20  # bodies of anything but masks and images
LARGE = ("/label", "/mask-file", "/datastore", "/session", "/infer")  # what masks and images are sent to
CHUNK_SECONDS = 30.0  # a body that comes slower is given up
_GUESSES, _WINDOW = 20, 60.0  # wrong tokens a minute before they are answered 429
LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE = ("GET", "HEAD", "OPTIONS")
_PUBLIC = ("/", "/open", "/favicon.ico", "/auth/", "/auth/token")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self' blob: data:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def shown_name(name: str) -> str:
    """What somebody calls himself or a file, as far as it is shown: 60 printable characters at most."""
    return "".join(c for c in name if c.isprintable()).strip()[:60]


def new_token() -> str:
    """VESALIUS_TOKEN (at least 16 letters), else a random one."""
    given = os.environ.get("VESALIUS_TOKEN", "")
    if given and (len(given) < 16 or not given.isascii()):
        raise UsageError("the token is too short to protect anything", where="VESALIUS_TOKEN", allowed="16 or more letters of ASCII")
    return given or secrets.token_urlsafe(32)


@dataclass
class Guard:
    """The token and the hosts that a server goes by."""

    token: str
    hosts: frozenset[str] = LOCAL
    most_body: int = MOST_BODY
    wrong: deque[float] = field(default_factory=lambda: deque(maxlen=_GUESSES))

    @property
    def cookie(self) -> str:
        return hashlib.sha256(b"vesalius cookie " + self.token.encode()).hexdigest()

    def accepts(self, given: str) -> bool:
        """Whether this is the token, in constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def knows(self, headers: MutableMapping[str, str]) -> bool:
        """Whether a request carries the token or its cookie."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.accepts(given.strip()):
            return True
        try:
            crumb = SimpleCookie(headers.get("cookie", "")).get(cookie_name(headers.get("host", "")))
        except CookieError:
            return False
        return crumb is not None and hmac.compare_digest(crumb.value.encode(), self.cookie.encode())

    def refused(self) -> int:
        """The status of a wrong or missing token: 401, or 429 where too many were tried."""
        now = time.monotonic()
        many = len(self.wrong) == _GUESSES and now - self.wrong[0] < _WINDOW
        self.wrong.append(now)
        return 429 if many else 401


def cookie_name(host: str) -> str:
    """Cookies are shared by all ports of a host; ours is named after its port."""
    return f"vesalius-{host.rpartition(':')[2] if host.rpartition(':')[2].isdigit() else 80}"


class Gate:
    """ASGI middleware that does all of the above before the application sees a request."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], guard: Guard, public: Iterable[str] = ("/assets/",)):
        self.app, self.guard, self.public = app, guard, tuple(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no WebSockets here
            return await send({"type": "websocket.close", "code": 1008})
        started, headers = time.perf_counter(), {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        status = [0]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                have = {k.lower() for k, _ in message["headers"]}
                own = _HEADERS | ({"cache-control": "no-store"} if not self._open(scope["path"]) else {})
                more = [(k.encode(), v.encode()) for k, v in own.items() if k.encode() not in have]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal:
            await _refuse(answer, *refusal)
        else:
            await self._bounded(scope, receive, answer, headers)
        route = getattr(scope.get("route"), "path", "-")
        log.info("%s %s %d %.0f ms", scope["method"], route, status[0], 1000 * (time.perf_counter() - started))

    def _open(self, path: str) -> bool:
        return path in _PUBLIC or path.startswith(self.public)

    def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if (urlsplit(f"//{host}").hostname if _parses(host) else None) not in self.guard.hosts:
            return 403, "this host name is not served here"
        if scope["method"] not in _SAFE:
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != host or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                return 403, "requests from other sites are not taken"
        if not self._open(scope["path"]) and not self.guard.knows(headers):
            return self.guard.refused(), "sign in with the link that was printed"
        if headers.get("content-encoding", "identity").lower() != "identity":
            return 415, "encoded bodies are not taken"
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return 400, "the request is malformed"
        brings = scope["method"] in ("POST", "PUT", "PATCH")  # MONAI Label's client sends the length of its last upload with the next GET
        if brings and int(length) > self._most(scope["path"]):
            return 413, "that is too large"
        return None

    def _most(self, path: str) -> int:
        large = path.rstrip("/").endswith(LARGE) or path.startswith(LARGE)
        return self.guard.most_body if large else min(MOST_SMALL, self.guard.most_body)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, headers: MutableMapping[str, str]) -> None:
        """The application, with a body that ends at the limit and does not dawdle."""
        import asyncio

        most, seen, broken = self._most(scope["path"]), 0, None
        begun = done = False

        async def measured() -> Message:
            nonlocal seen, broken, done
            if done:  # what follows a body is the client's going away, which may take as long as it likes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), CHUNK_SECONDS)
            except TimeoutError:
                broken = 408, "the request came too slowly"
                return {"type": "http.disconnect"}
            seen += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if seen > most:
                broken = 413, "that is too large"
                return {"type": "http.disconnect"}
            return message

        async def unless_broken(message: Message) -> None:
            nonlocal begun
            if broken is None or begun:
                begun = True
                await send(message)

        try:
            await self.app(scope, measured, unless_broken)
        except Exception:
            if broken is None:
                raise
        if broken is not None and not begun:
            await _refuse(send, *broken)


def _parses(host: str) -> bool:
    try:
        urlsplit(f"//{host}").hostname  # noqa: B018 - raises for a malformed one
        return True
    except ValueError:
        return False


async def _refuse(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error, "fix": None}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers += [(b"connection", b"close")] if status in (408, 413) else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
