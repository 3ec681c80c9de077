"""A Hub in memory: a real HTTP server on loopback that speaks the Hugging Face Hub's API to the real clients.

It keeps what a test wants to know (`requests`, `repo(...)`) and misbehaves on demand (`faults`).
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from .minihub_api import USERS, HubAPI, bearer
from .minihub_store import Repo


@dataclass
class Fault:
    """Misbehave on the next `times` requests whose "METHOD path" matches `match`, after `after` bytes of their body.

    With `call`, call it and go on as usual; with a `status`, answer with it; with `stall`, answer nothing until the
    client gives up; else drop the connection. `reached` is set as soon as that happens.
    """

    match: str
    call: Callable[[], object] | None = None
    status: int | None = None
    stall: bool = False
    after: int = 0
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass
class Seen:
    """One request as the server saw it; `user` is None without a (valid) token, `status` until it was answered."""

    method: str
    path: str
    query: str
    user: str | None
    range: str | None
    status: int | None = None


class MiniHub:
    """The server, as a context manager. Users: alice (`hf_alice`; `hf_alice_read` may only read), bob (`hf_bob`)."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self._api = HubAPI()

    def __enter__(self) -> "MiniHub":
        options = {"interface": "asgi3", "lifespan": "off", "proxy_headers": False, "log_level": "error"}
        config = uvicorn.Config(self._serve, "127.0.0.1", 0, http=_Connection, **options)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the test Hub could not start")
            time.sleep(0.005)
        self.url = self._api.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(10)

    def repo(self, name: str, kind: str = "models") -> Repo:
        """What the server holds, past any permission: the truth for a test to compare with."""
        return self._api.repos[kind, name]

    def seen(self, match: str) -> list[Seen]:
        """The requests whose "METHOD path" matches the regular expression, in order."""
        return [seen for seen in list(self.requests) if re.search(match, f"{seen.method} {seen.path}")]

    def environment(self, home: Path, token: str | None = "hf_alice") -> dict[str, str]:
        """Variables that send the Hugging Face libraries of a new process here, with `home` for their caches."""
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return settings | ({"HF_TOKEN": token} if token else {})

    async def _serve(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Note the request, misbehave if asked to, else let the API answer."""
        # A revision may hold an escaped slash (refs%2Fpr%2F1): routes see the raw path, handlers unquote.
        scope["path"] = scope["raw_path"].decode()
        request = Request(scope)
        user, path = USERS.get(bearer(request)), unquote(scope["path"])
        seen = Seen(request.method, path, request.url.query, user, request.headers.get("range"))
        self.requests.append(seen)

        async def noting_send(message: dict) -> None:
            seen.status = message.get("status", seen.status)
            await send(message)

        for fault in self.faults:
            if fault.times and re.search(fault.match, f"{seen.method} {seen.path}"):
                fault.times -= 1
                if fault.call is None:
                    return await self._misbehave(fault, scope, receive, noting_send)
                fault.call()
        with suppress(ClientDisconnect):
            await self._api.app(scope, receive, noting_send)

    async def _misbehave(self, fault: Fault, scope: dict, receive: Callable, send: Callable) -> None:
        received, more = 0, True
        while more and received < fault.after:
            message = await receive()
            received, more = received + len(message.get("body", b"")), message.get("more_body", False)
        fault.reached.set()
        if fault.status:
            await JSONResponse({"error": "made to fail"}, fault.status)(scope, receive, send)
            return
        if not fault.stall:
            scope["state"]["transport"].abort()
        while (await receive())["type"] != "http.disconnect":
            pass


class _Connection(H11Protocol):
    """Hands its transport to the application, so that it can drop the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
