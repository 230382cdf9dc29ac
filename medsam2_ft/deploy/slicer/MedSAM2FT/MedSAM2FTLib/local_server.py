"""Start `python -m medsam2_ft serve` on this machine and wait until it answers."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from .client import Client, ServerError

START_S = 120.0
"""Opening torch and a large checkpoint on a slow disk takes a while."""


class LocalServer:
    """A server process that this Slicer started and ends again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process we started lives."""
        return self._process is not None and self._process.poll() is None

    def start(
        self,
        python: str,
        *,
        port: int,
        checkpoints: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        timeout_s: float = START_S,
        on_wait: Callable[[], None] = lambda: None,
    ) -> str:
        """Start the server and wait for its first answer.

        Args:
            python: the interpreter of the environment that medsam2_ft is installed in, not Slicer's own.
            port: on 127.0.0.1.
            checkpoints: files or names to offer; the server's default otherwise.
            environment: of the process; pass `slicer.util.startupEnvironment()`: Slicer's own names Slicer's Python.
            timeout_s: how long to wait.
            on_wait: called several times a second meanwhile.

        Returns:
            The server's address.

        Raises:
            ServerError: it did not start, with the last line that it printed.
        """
        if self.is_running:
            self.stop()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise ServerError(
                    f"Something runs on port {port} already: test the connection, or choose another port."
                )
        command = [python, "-m", "medsam2_ft", "serve", "--port", str(port)]
        for checkpoint in checkpoints:
            command += ["--checkpoint", checkpoint]
        with tempfile.TemporaryFile("w+") as output:
            try:
                self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            except OSError as error:
                reason = f"'{python}' cannot be started ({error.strerror})"
                raise ServerError(f"{reason}; choose the Python of medsam2_ft.") from None
            return self._wait(Client(f"http://127.0.0.1:{port}"), output, timeout_s=timeout_s, on_wait=on_wait)

    def _wait(self, client: Client, output: IO[str], *, timeout_s: float, on_wait: Callable[[], None]) -> str:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if not self.is_running:
                output.seek(0)
                last_line = (output.read().strip() or "it printed nothing").splitlines()[-1]
                raise ServerError(f"The server ended at once: {last_line}")
            try:
                client.check()
                return client.url
            except ServerError:
                on_wait()
                time.sleep(0.2)
        self.stop()
        raise ServerError(f"The server did not answer within {timeout_s:.0f} seconds.")

    def stop(self) -> None:
        """End the process, gently first."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
