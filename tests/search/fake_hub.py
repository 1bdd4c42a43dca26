"""A hub on this machine: the part of the Hugging Face Hub's interface that an upload uses.

It keeps what it is sent, and refuses what the contents do not bear out: blobs whose bytes have another hash, commits of
blobs that never came."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "t0ken" * 6


@dataclass
class Repository:
    """What one repository holds.

    Attributes:
        private: whether it is.
        branches: branch -> path -> content.
        commits: commit id -> path -> content.
    """

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)


class FakeHub(ThreadingHTTPServer):
    """Runs while it is entered as a context.

    Attributes:
        repositories: ``owner/name`` -> content.
        blobs: SHA-256 -> bytes that were really uploaded.
        requests: (method, path) in order.
        failures: pattern of "METHOD path" -> what to answer instead: a status, or "drop" to close the connection
            after a part of the body was read.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: dict[str, int | str] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        failure = next((value for key, value in self.server.failures.items()
                        if re.search(key, f"{self.command} {path}")), None)  # fmt: skip
        if failure == "drop":
            self.rfile.read(min(1000, int(self.headers.get("content-length") or 0)))
            self.close_connection = True
        else:
            self._answer(*self._acted(path, self._body(), failure))

    def _acted(self, path: str, body: bytes, failure: int | str | None) -> tuple[Any, int]:
        if isinstance(failure, int):
            return {"error": f"told to answer {failure}, {self.server.address}"}, failure
        if not path.startswith("/lfs/") and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return {"error": "Invalid credentials"}, 401
        for method, pattern, act in _ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                found: tuple[Any, int] = act(self, body, *match.groups())
                return found
        return {"error": "no such page"}, 404

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, data: Any, status: int = 200) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        if status >= 400:
            self.send_header("x-error-message", data["error"])
            if status == 404:
                self.send_header("x-error-code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(text)

    def create(self, body: bytes) -> tuple[Any, int]:
        asked = json.loads(body)
        id = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.address}/{id}"
        if id in self.server.repositories:
            return {"error": "You already created this model repo", "url": url}, 409
        self.server.repositories[id] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": url, "name": id, "id": id}, 200

    def info(self, _: bytes, id: str, revision: str | None = None) -> tuple[Any, int]:
        found = self.server.repositories.get(id)
        if found is None:
            return {"error": "Repository not found"}, 404
        files = found.branches.get(revision or "main") or found.commits.get(revision or "", {})
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        return {"id": id, "private": found.private, "sha": "0" * 40, "siblings": siblings}, 200

    def branch(self, _: bytes, id: str, name: str) -> tuple[Any, int]:
        branches = self.server.repositories[id].branches
        if name in branches:
            return {"error": "Reference already exists"}, 409
        branches[name] = dict(branches["main"])
        return {}, 200

    def validate(self, body: bytes) -> tuple[Any, int]:
        import yaml

        content = json.loads(body)["content"]
        assert content.startswith("---\n")
        found = yaml.safe_load(content.split("\n---\n")[0])
        ids = found.get("base_model", [])
        good = all(re.fullmatch(r"[\w.-]+/[\w.-]+", each) for each in ids)
        return ({"errors": [], "warnings": []}, 200) if good else ({"error": "bad base_model"}, 400)

    def preupload(self, body: bytes, _id: str, _revision: str) -> tuple[Any, int]:
        files = json.loads(body)["files"]
        mode = lambda name: "lfs" if name.endswith((".safetensors", ".png")) else "regular"  # noqa: E731
        return {
            "files": [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]
        }, 200

    def batch(self, body: bytes, _id: str) -> tuple[Any, int]:
        objects = []
        for each in json.loads(body)["objects"]:
            here = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server.blobs:
                href = f"{self.server.address}/lfs/{each['oid']}?signature=secret"
                here["actions"] = {"upload": {"href": href}}
            objects.append(here)
        return {"transfer": "basic", "objects": objects}, 200

    def blob(self, body: bytes, oid: str) -> tuple[Any, int]:
        if hashlib.sha256(body).hexdigest() != oid:
            return {"error": "these bytes have another hash"}, 400
        self.server.blobs[oid] = body
        return {}, 200

    def commit(self, body: bytes, id: str, revision: str) -> tuple[Any, int]:
        files = dict(self.server.repositories[id].branches[revision])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if len(self.server.blobs.get(value["oid"], b"")) != value["size"]:
                    return {"error": "that blob was never uploaded"}, 400
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        repository = self.server.repositories[id]
        repository.branches[revision] = files
        oid = hashlib.sha1(body).hexdigest()
        repository.commits[oid] = files
        return {"commitOid": oid, "commitUrl": f"{self.server.address}/{id}/commit/{oid}", "hookOutput": ""}, 200

    def paths(self, body: bytes, id: str, commit: str) -> tuple[Any, int]:
        asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
        files = self.server.repositories[id].commits[commit]
        return [_entry(name, files[name]) for name in asked if name in files], 200

    def tree(self, _: bytes, id: str, revision: str) -> tuple[Any, int]:
        found = self.server.repositories[id]
        files = found.branches[revision] if revision in found.branches else found.commits[revision]
        return [_entry(name, data) for name, data in files.items()], 200


def _entry(name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if name.endswith((".safetensors", ".png")):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


_REPO = r"/api/models/([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", _REPO, _Handler.info),
    ("GET", _REPO + r"/revision/([\w.-]+)", _Handler.info),
    ("POST", _REPO + r"/branch/([\w.-]+)", _Handler.branch),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", _REPO + r"/preupload/([\w.-]+)", _Handler.preupload),
    ("POST", r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.blob),
    ("POST", _REPO + r"/commit/([\w.-]+)", _Handler.commit),
    ("POST", _REPO + r"/paths-info/([\w.-]+)", _Handler.paths),
    ("GET", _REPO + r"/tree/([\w.-]+)", _Handler.tree),
]
