"""What may stand before engines: a relay that hands each connection to the next of them, with or without TLS.

Of HTTP it knows nothing, unless it is to hold streams back as a proxy that buffers: then it sends one when it is whole.
It may hold back some of them only, as a machine does that is busy at times.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def certificate(path: Path) -> Path:
    """A certificate for 127.0.0.1 that its own key signed, and the key, in one file."""
    file = path / "relay.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=relay"
    words += " -addext subjectAltName=IP:127.0.0.1"
    made = ["openssl", *words.split(), "-keyout", str(file), "-out", str(path / "only.pem")]
    subprocess.run(made, check=True, capture_output=True)
    file.write_text(file.read_text() + (path / "only.pem").read_text())
    return file


@contextmanager
def relay(*ports: int, tls: Path | None = None, hold: Callable[[int], bool] = lambda _: False) -> Iterator[int]:
    """Its port, while it relays to these ports of this machine in turn and holds back streams of these numbers."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
    turn = itertools.cycle(ports)
    streams = itertools.count(1)
    loop = asyncio.new_event_loop()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = await asyncio.open_connection("127.0.0.1", next(turn))
        await asyncio.gather(copy(reader, far), copy(near, writer, answers=True))

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool = False) -> None:
        try:
            with suppress(OSError):
                while data := await source.read(65536):
                    if answers and b"text/event-stream" in data and hold(next(streams)):
                        while not data.endswith(b"0\r\n\r\n"):
                            data += await source.read(65536)
                    sink.write(data)
                    await sink.drain()
        finally:
            with suppress(OSError, RuntimeError):
                sink.close()
                await sink.wait_closed()

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # closed sockets are let go in the next round

    server = loop.run_until_complete(asyncio.start_server(join, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(end())
        loop.close()
