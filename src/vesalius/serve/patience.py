"""How long a connection may take to say what it wants: uvicorn itself waits for ever for the headers of a request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
MOST_SILENT = 64  # connections that may be at their headers at once; a further one ends the oldest
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Impatient(H11Protocol):
    """uvicorn's HTTP/1.1, with an end to headers that do not come."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()
        silent = sorted((c for c in self.connections if getattr(c, "timer", None) is not None), key=lambda c: c.timer.when())
        for oldest in silent[:-MOST_SILENT]:
            oldest._give_up()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The time runs from the first byte, however many follow, until the headers are whole."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._rest()
        elif self.timer is None:
            self.timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _rest(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _give_up(self) -> None:
        self._rest()
        if self.conn.trailing_data[0]:  # a browser opens connections ahead, and is not to take this for an answer
            self.transport.write(_LATE)
        self.transport.close()
