"""Real servers of remote datasets for tests: nginx, an S3 store, and an HTTP server that fails as it is told."""

import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scaletrain.runtime.ports import free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

_BEFORE_A_CUT = 0.1  # seconds: what a client has not taken from its buffer when the connection breaks is lost to it


@dataclass
class Faults:
    """What goes wrong, for the requests whose path ends in `name` (all by default)."""

    name: str = ""
    errors: int = 0  # so many requests are answered with `status`
    status: int = 500
    cuts: int = 0  # so many answers break off ...
    cut_after: int = 0  # ... after this many bytes
    delay: float = 0.0  # seconds before each answer
    stalls: int = 0  # so many answers stop for `stall` seconds after `cut_after` bytes
    stall: float = 0.0
    piece_delay: float = 0.0  # seconds between pieces of 64 KB
    content: bytes | None = None  # sent in place of the file ...
    contents: int = 1 << 30  # ... so many times
    ranges: bool = True  # whether Range is understood
    length: bool = True  # whether the answer says its length


@dataclass
class FaultyServer:
    """The files of a folder over HTTP/1.1; `requests` holds the method, path and Range of each request so far."""

    root: Path
    url: str = ""
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def gets(self, name: str) -> list[str]:
        """The ranges that were asked of a file, "" for the whole."""
        return [wanted for method, path, wanted in self.requests if method == "GET" and path.endswith(name)]

    def takes(self, count: str) -> bool:
        """Whether one more of a counted fault is due."""
        with self.lock:
            left = getattr(self.faults, count)
            setattr(self.faults, count, max(0, left - 1))
        return bool(left > 0)


@contextmanager
def faulty_server(root: Path) -> Iterator[FaultyServer]:
    """Serves `root` from a thread of this process."""
    state = FaultyServer(root)

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FaultyServer

    def do_GET(self) -> None:
        state, path = self.server_state, self.path.partition("?")[0]
        state.requests.append(("GET", self.path, self.headers.get("Range", "")))
        faults = state.faults if path.endswith(state.faults.name) else Faults()
        time.sleep(faults.delay)
        if faults is state.faults and state.takes("errors"):
            self._answer(faults.status, b"")
            return
        file = state.root / path.lstrip("/")
        if not file.is_file():
            self._answer(404, b"")
            return
        content = file.read_bytes()
        if faults.content is not None and state.takes("contents"):
            content = faults.content
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not faults.ranges:
            self._send(200, content, faults)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self._answer(416, b"")
            return
        self._send(206, content[start:end], faults, f"bytes {start}-{end - 1}/{len(content)}")

    def _send(self, status: int, body: bytes, faults: Faults, content_range: str = "") -> None:
        self.send_response(status)
        if faults.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        state = self.server_state
        is_cut = faults is state.faults and state.takes("cuts")
        is_stalled = not is_cut and faults is state.faults and state.takes("stalls")
        if is_cut or is_stalled:
            body = body[: faults.cut_after]
            self.close_connection = True
        try:
            for first in range(0, len(body), 1 << 16):
                self.wfile.write(body[first : first + (1 << 16)])
                time.sleep(faults.piece_delay)
            if is_cut or is_stalled:
                time.sleep(max(_BEFORE_A_CUT, faults.stall if is_stalled else 0))
        except OSError:  # the client went away
            self.close_connection = True

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  named by the base class
        pass


@dataclass(frozen=True)
class Nginx:
    """A running nginx that serves `root`."""

    url: str
    root: Path
    log: Path

    def gets(self, name: str) -> list[str]:
        """The ranges that were asked of a file, "-" for the whole."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [wanted for method, path, wanted in lines if method == "GET" and path.endswith(name)]


@contextmanager
def nginx_server(folder: Path) -> Iterator[Nginx]:
    """An nginx of its own, with all its files in `folder`; skips the test where there is none."""
    if NGINX is None:
        pytest.skip("nginx is not installed (on Debian: apt-get install nginx)")
    root = folder / "root"
    root.mkdir(parents=True)
    port = free_port()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # its workers could not read a folder of root's otherwise
    config = folder / "nginx.conf"
    config.write_text(
        f"{user} daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ {temporary} log_format short '$request_method $uri $http_range';\n"
        f"access_log {folder}/access.log short; server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    process = subprocess.Popen([NGINX, "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(config)])
    try:
        wait_for(port, process)
        yield Nginx(f"http://127.0.0.1:{port}", root, folder / "access.log")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cutting_proxy(url: str, after: int, cuts: int) -> Iterator[str]:
    """The URL of a way to the server at `url` on which the first `cuts` answers break off after `after` bytes."""
    port, left = int(url.rpartition(":")[2]), [after] * cuts

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            room = left.pop() if left else -1
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(self.request.recv(1 << 16))  # the requests of these tests are short
                while room != 0 and (block := server.recv(1 << 16 if room < 0 else min(room, 1 << 16))):
                    self.request.sendall(block)
                    room -= len(block) if room > 0 else 0
                time.sleep(_BEFORE_A_CUT)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()


@dataclass(frozen=True)
class Store:
    """An S3 store in this process, with one empty bucket."""

    url: str
    options: dict[str, Any]

    def put(self, name: str, content: bytes) -> None:
        self._client().put_object(Bucket="bucket", Key=name, Body=content)

    def _client(self) -> Any:
        import boto3  # type: ignore[import-untyped]

        return boto3.client(
            "s3",
            endpoint_url=self.options["client_kwargs"]["endpoint_url"],
            region_name=self.options["client_kwargs"]["region_name"],
            aws_access_key_id=self.options["key"],
            aws_secret_access_key=self.options["secret"],
        )


@contextmanager
def s3_server() -> Iterator[Store]:
    """moto's S3 server in a thread."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
    store = Store("s3://bucket", {"key": "key-of-the-test", "secret": "secret-of-the-test", "client_kwargs": client})
    try:
        store._client().create_bucket(Bucket="bucket")
        yield store
    finally:
        server.stop()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of one MB at `folder`; skips the test where none can be mounted."""
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("a small disk can only be mounted by root")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


def wait_for(port: int, process: "subprocess.Popen[bytes]", seconds: float = 10) -> None:
    """Until something listens on the port."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on port {port}")
