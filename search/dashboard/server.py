"""optuna-dashboard on this machine alone: on the loopback address, for reading, and for pages of its own."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from search.dashboard.mirror import Mirror
from search.dashboard.storage import MirrorStorage, front_of
from search.errors import SearchError

ADDRESS = "127.0.0.1"
PORT = 8080
TRIED = 20
"""Ports from :data:`PORT` on, where none was asked for."""

_READING = ("GET", "HEAD", "OPTIONS")

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Dashboard:
    """The server, bound; :meth:`serve` runs it.

    Args:
        mirror: what it shows.
        port: to listen on; the first free one from :data:`PORT` on if None, any that is free if 0.

    Raises:
        SearchError: the port is taken, or may not be used.
    """

    def __init__(self, mirror: Mirror, port: int | None = None) -> None:
        self._mirror = mirror
        self._stop = threading.Event()
        self._server = _bound(port)
        self._server.set_app(guarded(application(mirror.storage), self._server.server_port))

    @property
    def address(self) -> str:
        """Where browsers find it."""
        return f"http://{ADDRESS}:{self._server.server_port}/dashboard"

    @property
    def port(self) -> int:
        """That it listens on."""
        return int(self._server.server_port)

    def serve(self) -> None:
        """Answer, and follow the run, until :meth:`close` or an interrupt."""
        follower = threading.Thread(target=self._mirror.follow, args=(self._stop,), daemon=True)
        follower.start()
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._stop.set()
            self._server.server_close()
            follower.join(5.0)

    def close(self) -> None:
        """End :meth:`serve`, from another thread."""
        self._server.shutdown()


def application(storage: MirrorStorage) -> Application:
    """optuna-dashboard over a mirror.

    Its own search for the best trials takes the square of their number in Python, and does not look at constraints;
    ours is put in its place.
    """
    from optuna_dashboard import _app, wsgi

    _app.get_pareto_front_trials = front_of
    found: Application = wsgi(storage)
    return found


def guarded(inner: Application, port: int) -> Application:
    """Let through what reads, and what asks for this server by its own name: a page from elsewhere, which may have its
    own name point here, is not answered."""
    hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}

    def answer(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_HOST", "").lower() not in hosts:
            return _refused(start, f"expected a request for {ADDRESS}:{port}")
        if environ.get("REQUEST_METHOD") not in _READING:
            return _refused(start, "this page mirrors a run, which is changed by its search alone")
        return inner(environ, start)

    return answer


def _refused(start: StartResponse, reason: str) -> Iterable[bytes]:
    body = json.dumps({"reason": reason}).encode()
    start("403 Forbidden", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a request. The name of the machine, which may take a slow look-up, is of no use here."""

    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = ADDRESS, self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""


class _Quiet(WSGIRequestHandler):
    """Says nothing of every request."""

    def log_message(self, format: str, *args: Any) -> None:
        return None


def _bound(port: int | None) -> _Server:
    ports = [port] if port is not None else [*range(PORT, PORT + TRIED), 0]
    for each in ports:
        with suppress(OSError):
            return _Server((ADDRESS, each), _Quiet)
    try:
        return _Server((ADDRESS, ports[0]), _Quiet)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program listens there" if taken else (error.strerror or str(error))
        raise SearchError(
            f"--port {ports[0]}: expected a free port of {ADDRESS}, and {why}; name another one, or leave --port out"
        ) from error
