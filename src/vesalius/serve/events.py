"""Server-sent events: what changes is told to every open page."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

HEARTBEAT = 15.0
_WAITING = 256  # events that a slow page may be behind; then the oldest go
_END = ""


class Hub:
    """``publish`` from any thread; ``stream`` for a page: a person's tab, whose earlier stream ends when it asks anew."""

    def __init__(self):
        self.pages: dict[asyncio.Queue, tuple[asyncio.AbstractEventLoop, str, str]] = {}
        self.lock = threading.Lock()

    def publish(self, event: str, **data: Any) -> None:
        self._tell(f"event: {event}\ndata: {json.dumps(data)}\n\n")

    def _tell(self, text: str) -> None:
        with self.lock:
            pages = list(self.pages.items())
        for queue, (loop, *_) in pages:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put, queue, text)

    def users(self) -> list[str]:
        """Who has a page open, each once."""
        with self.lock:
            return sorted({user for _, user, _ in self.pages.values()})

    def close(self) -> None:
        """End all streams."""
        self._tell(_END)

    async def stream(self, user: str, tab: str = "") -> AsyncIterator[str]:
        """Text of events as they come, a comment now and then so that a dead connection is noticed."""
        queue: asyncio.Queue = asyncio.Queue(_WAITING)
        with self.lock:
            for old in [q for q, (*_, known) in self.pages.items() if tab and known == tab]:
                del self.pages[old]
                _put(old, _END)
            self.pages[queue] = asyncio.get_running_loop(), user, tab
        try:
            self.publish("presence", users=self.users())
            while True:
                try:
                    text = await asyncio.wait_for(queue.get(), HEARTBEAT)
                except TimeoutError:
                    text = ": still here\n\n"
                if text == _END:
                    return
                yield text
        finally:
            with self.lock:
                self.pages.pop(queue, None)
            self.publish("presence", users=self.users())


def _put(queue: asyncio.Queue, text: str) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(text)
