"""A stand-in for the hub's HTTP API on the loopback: repositories, tokens, uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_stand_in"
READ_ONLY = "hf_reads_only"


class Hub(ThreadingHTTPServer):
    """Keeps what was uploaded.

    Attributes:
        repos: Bytes by path, by the repository's name.
        private: Repositories that were asked to be private.
        calls: Method and path of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, value: Any = None, **headers: str) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        """Content of one large file."""
        self.server.calls.append(("PUT", self.path))
        data = self._body()
        oid = self.path.rpartition("/")[2]
        right = hashlib.sha256(data).hexdigest() == oid
        if right:
            self.server.blobs[oid] = data
        self._send(200 if right else 400)

    def do_GET(self) -> None:
        """What a repository is."""
        self.server.calls.append(("GET", self.path))
        name = self.path.partition("/api/models/")[2].partition("/revision")[0]
        found = name in self.server.repos
        self._send(200 if found else 404, {"id": name, "sha": "0" * 40, "siblings": []} if found else {"error": "none"})

    def do_POST(self) -> None:
        """Everything that changes something."""
        path, body = self.path.partition("?")[0], self._body()
        self.server.calls.append(("POST", path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            self._send(401, {"error": "Invalid username or password."})
        elif token == READ_ONLY:
            self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.server.address}/blob/{each['oid']}", "header": {}}}
            self._send(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith((".safetensors", ".gguf")) else "regular",
                    "shouldIgnore": False,
                }
                for each in files
            ]
            self._send(200, {"files": modes})
        elif "/commit/" in path:
            self._commit(path.split("/api/models/")[1].partition("/commit/")[0], body)
        else:
            self._send(404, {"error": f"the stand-in knows no {path}"})

    def _validate(self, card: str) -> None:
        errors = []
        if card.startswith("---"):
            try:
                yaml.safe_load(card.split("---")[1])
            except yaml.YAMLError:
                errors.append({"message": "the front matter isn't YAML"})
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        url = f"{self.server.address}/{name}"
        if name in self.server.repos:
            self._send(409, {"error": "You already created this model repo", "url": url})
            return
        self.server.repos[name] = {}
        if wanted.get("private") or wanted.get("visibility") == "private":  # releases of the library differ
            self.server.private.add(name)
        self._send(200, {"url": url, "name": name})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repos[name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        commit = f"{self.server.address}/{name}/commit/{'1' * 40}"
        self._send(200, {"commitUrl": commit, "commitOid": "1" * 40, "success": True})
