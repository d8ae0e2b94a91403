"""``vesalius annotate``: a project served on this machine, by one link, until it is told to end."""

from __future__ import annotations

import errno
import html
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import quote

import uvicorn

from ..core.errors import ResourceError, RunError, UsageError
from ..engine.record import Lock
from .app import PAGE, create_app
from .models import Models, add_model, checked_model, checkpoint_of
from .patience import Impatient
from .security import LOCAL, Guard, new_token
from .sources import manifest_of
from .store import Project


def serve(
    data: str | Path | Sequence[str | Path],
    *,
    project: Path | None = None,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8421,
    show: bool = False,
    page: Path = PAGE,
) -> Path:
    """Open ``data`` in a project folder (None: ``vesalius-project`` here) and serve it until Ctrl-C or SIGTERM; the folder.

    Prints the link with the token once; ``show``: in a browser too. ``port`` 0: any free one. Raises UsageError (model, host, port, another
    data's project), DataError (the data), RunError (another annotator holds the project), ResourceError (the folder cannot be written)."""
    given = checkpoint_of(model) if model is not None else None
    if model is not None and given is None:
        checked_model(model)
    manifest, folder, hosts = manifest_of(data), Path(project or "vesalius-project"), _hosts(host)
    guard = Guard(new_token(), LOCAL | set(hosts))
    with _listening(host, port) as listener, _held(folder), closing(Project(folder, manifest)) as opened:
        first = given.id if given else add_model(opened, model) if model is not None else ""
        shown = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
        link = f"http://{shown}:{listener.getsockname()[1]}/open?token={quote(guard.token, safe='')}"
        print(f"{manifest.name}: {len(manifest)} cases in the project {folder}. Open {link}", flush=True)
        if host not in LOCAL:
            print("note: whoever reaches this machine and has the link may work here; the way there is not encrypted", file=sys.stderr)
        if not (page / "index.html").exists():
            print("note: the page is not built (REST and 3D Slicer's plugin work); build it: make setup", file=sys.stderr)
        limits = {"limit_concurrency": 128, "timeout_keep_alive": 10, "h11_max_incomplete_event_size": 65536}
        app = create_app(opened, guard=guard, models=Models(opened, given=given, first=first), page=page)
        level = "error" if os.environ.get("VESALIUS_DEBUG") else "critical"
        config = uvicorn.Config(app, access_log=False, log_level=level, timeout_graceful_shutdown=3, http=Impatient, **limits)
        with _shown(link, folder) if show else nullcontext(), suppress(KeyboardInterrupt):  # uvicorn hands it on when it has closed all
            _Server(config).run(sockets=[listener])
    return folder


class _Server(uvicorn.Server):
    """Ends the pages' event streams first, which would stay open for ever."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.hub.close()
        await super().shutdown(sockets)


def _hosts(host: str) -> list[str]:
    """The names that a server bound to ``host`` goes by, the one to show first: of all addresses, this machine's name and addresses."""
    if host not in ("0.0.0.0", "::", ""):
        return [host.lower()]
    name = socket.gethostname().lower()
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        found = set()
    return [name, *sorted(found)]


def _listening(host: str, port: int) -> socket.socket:
    """A socket at which browsers can already knock."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else small answers wait 40 ms; asyncio sets it only on its own
        return listener
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            what = "the port is in use" if error.errno == errno.EADDRINUSE else "you may not use this port"
            fix = "stop what holds it, or choose another --port; 0 takes any free one"
            raise UsageError(what, where="--port", found=port, fix=fix) from error
        raise UsageError("this is no address of this machine", where="--host", found=host, allowed="127.0.0.1, 0.0.0.0 (all)") from error


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The project folder for this process alone."""
    lock = Lock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.__enter__()
    except OSError as error:
        raise ResourceError("the project folder cannot be written", where=folder, found=error.strerror, fix="choose --project") from error
    except RunError as error:
        fix = "open its link, or choose another --project"
        raise RunError("another annotator has this project open", where=folder, found=error.found, fix=fix) from error
    try:
        yield
    finally:
        lock.__exit__()


@contextmanager
def _shown(link: str, folder: Path) -> Iterator[None]:
    """The link in a browser, by a file that only this user can read: the token is on no command line. The file goes in the end."""
    import webbrowser

    way = folder.resolve() / "open.html"
    with suppress(OSError):
        way.unlink(missing_ok=True)
        with open(os.open(way, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(link)}">')
        threading.Thread(target=webbrowser.open, args=(way.as_uri(),), daemon=True).start()
    try:
        yield
    finally:
        way.unlink(missing_ok=True)
