"""A web server of files that knows ranges and ETags, and fails when it is told to: `python tests/range_server.py FOLDER [DELAY]`.

Python's own knows neither. What was asked for is in `asked`; the next answers are what `faults` says.
"""

from __future__ import annotations

import hashlib
import http.server
import re
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote


class Asked(NamedTuple):
    """A question: method, path below the folder, first and last byte of the answer, its status and length."""

    method: str
    path: str
    span: str | None
    status: int
    sent: int


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RangeServer

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        web = self.server.owner
        name = unquote(self.path).lstrip("/")
        what, value = web.faults.popleft() if web.faults else (None, 0)
        time.sleep(web.delay + (value if what == "slow" else 0))
        if what == "call":
            value()
        if what == "drop" or web.gone:
            self.close_connection = True
            return
        if what == "status":
            self.answer(name, value, b"", body)
            return
        path = web.folder / name
        if not path.is_file():
            self.answer(name, 404, b"", body)
            return
        content, digest = web.content(path)
        etag = f'"{digest}"' if web.etags else None
        fields = {"ETag": etag} if etag else {}
        fields["Last-Modified"] = self.date_time_string(int(path.stat().st_mtime))
        if etag and self.headers.get("If-None-Match") == etag:
            self.answer(name, 304, b"", body, fields)
        elif etag and self.headers.get("If-Match", etag) != etag:
            self.answer(name, 412, b"", body)
        elif self.headers.get("Range") and web.ranges:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"]).groups()
            n = len(content)
            a = int(first) if first else max(0, n - int(last))
            b = min(int(last), n - 1) if first and last else n - 1
            if a > b:
                self.answer(name, 416, b"", body)
                return
            fields["Content-Range"] = f"bytes {a}-{b}/{n}"
            part = content[a : b + 1]
            self.answer(name, 206, part[: len(part) // 2] if what == "cut" else part, body, fields, len(part))
        else:
            self.answer(name, 200, content, body, fields)

    def answer(
        self, name: str, status: int, data: bytes, body: bool, fields: dict | None = None, said: int | None = None
    ) -> None:
        """`said`: the length that is promised, if another one than that of the data."""
        web = self.server.owner
        fields = fields or {}
        web.asked.append(Asked(self.command, name, fields.get("Content-Range"), status, len(data) if body else 0))
        self.send_response(status)
        for k, v in fields.items():
            self.send_header(k, v)
        if web.pause and body and data:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (*(data[i : i + len(data) // 8 + 1] for i in range(0, len(data), len(data) // 8 + 1)), b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                time.sleep(web.pause)
            return
        self.send_header("Content-Length", str(len(data) if said is None else said))
        self.end_headers()
        if body:
            self.wfile.write(data)
        if said is not None and said != len(data):
            self.close_connection = True

    def log_message(self, *said: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client: Any) -> None:
        pass  # a client that does not wait for a slow answer


class RangeServer:
    """The files of a folder at `address`.

    delay: s before each answer. pause: s between the eighths of an answer, which then does not say its length; 0: it does.
    faults: what happens to the next questions: ("status", 503), ("slow", s), ("drop", 0), ("cut", 0), ("call", function), (None, 0).
    """

    def __init__(self, folder: Path, delay: float = 0.0, etags: bool = True, ranges: bool = True):
        self.folder, self.delay, self.etags, self.ranges = Path(folder), delay, etags, ranges
        self.faults: deque = deque()
        self.pause = 0.0
        self.asked: list[Asked] = []
        self.port, self.gone, self.read = 0, True, {}
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def content(self, path: Path) -> tuple[bytes, str]:
        """The bytes of a file and their digest, read again when it has changed."""
        status = path.stat()
        state = status.st_mtime_ns, status.st_size, status.st_ino
        if path not in self.read or self.read[path][0] != state:
            content = path.read_bytes()
            self.read[path] = state, content, hashlib.md5(content).hexdigest()
        return self.read[path][1:]

    def start(self) -> None:
        self.web = _Server(("127.0.0.1", self.port), Handler)
        self.web.owner, self.port, self.gone = self, self.web.server_port, False
        threading.Thread(target=self.web.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Nothing listens any more, and open connections are closed at the next question."""
        self.gone = True
        self.web.shutdown()
        self.web.server_close()

    def lost(self, seconds: float) -> None:
        """Stop now, and start again after `seconds`, in the background."""
        self.stop()
        threading.Timer(seconds, self.start).start()

    def __enter__(self) -> RangeServer:
        return self

    def __exit__(self, *error: Any) -> None:
        if not self.gone:
            self.stop()


if __name__ == "__main__":
    with RangeServer(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0) as server:
        print(server.address, flush=True)
        sys.stdin.read()
