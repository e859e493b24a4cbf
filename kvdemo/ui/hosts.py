"""Under which names the page answers, and whose pages may open its socket.

A website can point a name of its own at this machine (DNS rebinding): the browser then takes the page for a part of
that website, which reads and presses everything. And every website may open a socket to any address. So the page
answers to its own names only, and its socket to the page itself.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address

from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import PlainTextResponse
from nicegui import app, core
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
EVERY = ("*",)


def names(host: str) -> tuple[str, ...]:
    """What a page that listens on ``host`` may be called.

    On all addresses of a machine (0.0.0.0) it is there for others, who call it by names that nobody knows here: all.
    """
    address = None
    with suppress(ValueError):
        address = ip_address(host)
    if not host or (address and address.is_unspecified):
        return EVERY
    name = str(address or host).lower()
    names = [*LOOPBACK, f"[{name}]" if ":" in name else name]
    if not (name == "localhost" or (address and address.is_loopback)):
        names.append(socket.gethostname().lower())
    return tuple(dict.fromkeys(names))


class OwnNames:
    """Lets in whoever calls the page by one of its names; anybody else is told what to do."""

    def __init__(self, app: ASGIApp, names: Sequence[str], url: str) -> None:
        self.app, self.names = app, names
        self.message = (
            f"This page answers to {', '.join(names)} only: under a name of its own any website could use it.\n"
            f"Open {url}, or start it for the name that you need: kvdemo ui --host NAME (0.0.0.0: for every name).\n"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse in our own words: those of the library do not say what to do."""
        inside = False

        async def enter(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal inside
            inside = True
            await self.app(scope, receive, send)

        async def answer(message: Message) -> None:
            if inside:
                await send(message)

        await TrustedHostMiddleware(enter, self.names, www_redirect=False)(scope, receive, answer)
        if not inside:
            await PlainTextResponse(self.message, 400)(scope, receive, send)


def guard(host: str, url: str) -> None:
    """Before the page is served: let nobody else in."""
    app.add_middleware(OwnNames, names=names(host), url=url)
    # NiceGUI takes sockets from every origin; None takes those of the host that the request itself is for.
    core.sio.eio.cors_allowed_origins = None
