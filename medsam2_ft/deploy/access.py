"""Who may talk to the server: loopback names only, or holders of the API key."""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsam2_ft.errors import ConfigError

API_KEY_VARIABLE = "MEDSAM2_FT_API_KEY"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "testserver")
OPEN_PATHS = ("/healthz",)
"""Answered without a key, so that process supervisors need none."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(host: str, api_key: str | None) -> None:
    """Refuse to open the server to the network without a key.

    Raises:
        ConfigError: `host` is not loopback and there is no key, or the key is easy to guess.
    """
    if api_key is not None and len(api_key) < 16:
        raise ConfigError(f"The API key in {API_KEY_VARIABLE} is shorter than 16 characters; use a longer one.")
    if not is_loopback(host) and api_key is None:
        raise ConfigError(
            f"Binding to {host} opens the server to the network, so it needs an API key: "
            f"set {API_KEY_VARIABLE} (16 characters or more), or stay on 127.0.0.1."
        )


def guard(app: FastAPI, *, api_key: str | None, is_local: bool) -> None:
    """Answer 401 without the key, and 421 where a web page tries to reach a local server by another name.

    Args:
        app: the application to guard.
        api_key: what `X-API-Key` must carry; None for no key.
        is_local: bound to loopback; a Host header that names another machine is then a DNS-rebinding attempt.
    """

    @app.middleware("http")
    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        name = (
            request.headers.get("host", "").rsplit(":", 1)[0] if "]" not in request.headers.get("host", "") else "[::1]"
        )
        if is_local and name not in LOOPBACK_NAMES:
            return _problem(421, "This server answers on 127.0.0.1 only.")
        if api_key is not None and request.url.path not in OPEN_PATHS:
            offered = request.headers.get("x-api-key", "")
            if not secrets.compare_digest(offered.encode(), api_key.encode()):
                return _problem(401, "The X-API-Key header is missing or wrong.")
        return await call_next(request)


class BodyLimit:
    """Middleware that answers 413 once a request's body grows beyond a limit; uploads (PUT) have their own."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        """
        Args:
            app: what answers the requests.
            limit: bytes.
        """
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._limit:  # FastAPI passes on HTTPException alone while it reads a body
                raise HTTPException(413, f"The request is larger than {self._limit >> 20} MiB.")
            return message

        is_exempt = scope["type"] != "http" or scope["method"] == "PUT"
        await self._app(scope, receive if is_exempt else counted, send)


def _problem(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status_code=status)
