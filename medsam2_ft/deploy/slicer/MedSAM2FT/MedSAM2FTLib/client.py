"""A client of `python -m medsam2_ft serve`: every failure is a `ServerError` that can be shown as it is."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException
from typing import Any

import numpy as np


class ServerError(Exception):
    """What went wrong, in a sentence for the user.

    Attributes:
        status: the HTTP status, or 0 where no answer came at all.
    """

    def __init__(self, sentence: str, *, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """One connection's worth of requests; holds no state but where the server is."""

    def __init__(self, url: str, *, api_key: str = "", timeout_s: float = 60.0) -> None:
        """
        Args:
            url: `http://127.0.0.1:8642`, for instance.
            api_key: needed where the server asks for one.
            timeout_s: how long one answer may take; uploads get ten times as long.
        """
        if not url.startswith(("http://", "https://")):
            raise ServerError(f"'{url}' is not a server address; write http://127.0.0.1:8642, for instance.")
        self.url = url.rstrip("/")
        self.api_key = api_key
        self._timeout_s = timeout_s
        # A proxy from the environment must not see patient data meant for this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(self, method: str, path: str, *, body: Any = None, data: bytes | None = None) -> bytes:
        """The body of the answer.

        Args:
            method: HTTP method.
            path: below the server's address.
            body: sent as JSON.
            data: sent as it is.

        Raises:
            ServerError: no answer, or a status of 400 or above.
        """
        headers = {"X-API-Key": self.api_key} if self.api_key else {}
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        elif data is not None:
            headers["Content-Type"] = "application/gzip"
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        timeout_s = self._timeout_s * (10 if body is None and data is not None else 1)
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(_sentence(error), status=error.code) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ServerError(f"The server at {self.url} does not answer ({reason}); is it running?") from None

    def ask(self, method: str, path: str, *, body: Any = None) -> dict:
        """As `request`, with JSON on both sides."""
        answer = self.request(method, path, body=body)
        if not answer:
            return {}
        try:
            return json.loads(answer)
        except ValueError:
            raise ServerError(f"{self.url} answers, but it is not a medsam2_ft server.") from None

    def check(self) -> str:
        """One sentence about the server, after making sure that it is ours and takes our key."""
        health = self.ask("GET", "/healthz")
        if "version" not in health or health.get("status") != "ok":
            raise ServerError(f"{self.url} answers, but it is not a medsam2_ft server.")
        return f"Connected to medsam2_ft {health['version']} with the models {', '.join(self.models())}."

    def models(self) -> list[str]:
        """Names of the checkpoints that the server offers, its default first."""
        answer = self.ask("GET", "/models")
        return [answer["default"], *(name for name in answer["models"] if name != answer["default"])]

    def open_session(self) -> str:
        """The id of a new session."""
        return self.ask("POST", "/sessions")["session"]

    def close_session(self, session: str) -> None:
        """Delete everything that the session holds on the server."""
        self.request("DELETE", f"/sessions/{session}")

    def upload(self, session: str, array: np.ndarray, *, sha256: str) -> None:
        """Send a volume, unless the session holds it already; only then it is compressed, which takes longest."""
        path = f"/sessions/{session}/volumes/{sha256}"
        try:
            self.request("GET", path)
        except ServerError as error:
            if error.status != 404:
                raise
            self.request("PUT", path, data=gzip.compress(npy_bytes(array), compresslevel=1))

    def delete_volume(self, session: str, sha256: str) -> None:
        """Let the session forget a volume."""
        self.request("DELETE", f"/sessions/{session}/volumes/{sha256}")

    def labels(self, session: str, job: str) -> np.ndarray:
        """The label map of a finished job, uint8, on the grid of the uploaded array."""
        packed = self.request("GET", f"/sessions/{session}/jobs/{job}/labels")
        return np.load(io.BytesIO(gzip.decompress(packed)), allow_pickle=False)


def npy_bytes(array: np.ndarray) -> memoryview:
    """A volume as the server takes it, before compression."""
    plain = io.BytesIO()
    np.save(plain, np.ascontiguousarray(array), allow_pickle=False)
    return plain.getbuffer()


def name_of(array: np.ndarray) -> str:
    """What the server calls a volume: the sha256 of its .npy bytes."""
    return hashlib.sha256(npy_bytes(array)).hexdigest()


def encode_mask(mask: np.ndarray) -> str:
    """(H, W) bool as the server takes it: base64 of zlib of its bits."""
    return base64.b64encode(zlib.compress(np.packbits(mask.astype(bool)).tobytes(), 1)).decode("ascii")


def decode_mask(text: str, height: int, width: int) -> np.ndarray:
    """The inverse of `encode_mask`."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


def _sentence(error: urllib.error.HTTPError) -> str:
    """The server's own words, or the status where something else than our server answered."""
    try:
        detail = json.loads(error.read())["detail"]
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        detail = None
    return detail if isinstance(detail, str) else f"The server answered {error.code} {error.reason}."
