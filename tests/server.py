"""A web server on loopback that misbehaves on request."""

import http.server
import threading

import pytest


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` (path → bytes) on loopback, badly on request.

    cuts: path → list of byte counts; each answer for that path stops after the next of them.
    ignore_range: answer every request with the whole file.
    statuses: path → list of statuses to answer with first.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.statuses: dict[str, list[int]] = {}
        self.ignore_range = False
        self.tag = '"v1"'
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def handle_error(self, request, client_address):
        pass  # a client that goes away is part of the tests


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server, path = self.server, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        server.requests.append((path, wanted))
        if server.statuses.get(path):
            self.send_error(server.statuses[path].pop(0))
            return
        if path not in server.files:
            self.send_error(404)
            return
        body, start = server.files[path], 0
        same = self.headers.get("If-Range") in (None, server.tag)
        if wanted and same and not server.ignore_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", server.tag)
        self.end_headers()
        stop = len(body)
        if server.cuts.get(path):
            stop = start + server.cuts[path].pop(0)
        self.wfile.write(body[start:stop])


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
