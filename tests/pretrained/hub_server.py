"""A stand-in for the hub that takes what the real client uploads."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any


class Hub:
    """What was asked of it.

    Attributes:
        url: of the server.
        repositories: name -> what it was made with.
        files: path -> content, of the last commit.
        tokens: that were sent.
        refuses: whether it answers that the token may not write.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    def answer(self, path: str, body: bytes) -> Any:
        """What the hub answers to a request, None for one that it does not know."""
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values.get('organization', 'me')}/{values['name']}"
            self.repositories[name] = values
            return {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            return {
                "files": [
                    {"path": x["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for x in json.loads(body)["files"]
                ]
            }
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            return {"commitOid": "0" * 40, "commitUrl": f"{self.url}/{name}/commit/0"}
        return None


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub on this machine."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.tokens.add(self.headers.get("Authorization"))
            answer = None if hub.refuses else hub.answer(self.path, body)
            status = 403 if hub.refuses else 404 if answer is None else 200
            self._send(status, answer or {"error": "no"})

        def _send(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
