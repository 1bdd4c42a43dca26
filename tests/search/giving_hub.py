"""A hub on this machine that also gives what it holds: downloads, as huggingface_hub asks for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import fake_hub
import pytest
from fake_hub import TOKEN, FakeHub

COMMIT = "0" * 40  # as this hub names every revision


class GivingHandler(fake_hub._Handler):
    """Answers downloads as well."""

    def do_HEAD(self) -> None:  # noqa: N802
        self._give(head=True)

    def do_GET(self) -> None:  # noqa: N802
        if "/resolve/" in self.path:
            self._give(head=False)
        else:
            self.handle_any()

    def _give(self, head: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        failure = next((value for key, value in self.server.failures.items() if re.search(key, path)), None)
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w.-]+)", path)
        found = match and self.server.repositories[match[1]].commits.get(match[2], {}).get(match[3])
        if not match or found is None or isinstance(failure, int):
            self.send_response(failure if isinstance(failure, int) else 404)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-length", str(len(found)))
        self.send_header("etag", f'"{match[3]}-{len(found)}"')
        self.send_header("x-repo-commit", COMMIT)
        self.end_headers()
        if not head:
            self.wfile.write(found[: len(found) // 2] if failure == "drop" else found)


@contextmanager
def giving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub, while huggingface_hub is turned to it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose server is another one
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between its five attempts
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server = FakeHub()
    server.RequestHandlerClass = GivingHandler
    with server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server
