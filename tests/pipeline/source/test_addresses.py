"""Sources at addresses: any that fsspec supports, S3 buckets, and servers that are unavailable."""

import hashlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from typing import ClassVar

import fsspec
import pytest

from pipeline.errors import SourceError
from pipeline.source.files import Buffer
from pipeline.source.sources import open_source
from testkit.source_files import CONTENTS, read_all


def test_an_fsspec_address_is_listed_and_read() -> None:
    system = fsspec.filesystem("memory")
    for name, content in CONTENTS.items():
        system.pipe(f"/bucket/study/{name}", content)
    system.pipe("/bucket/study/.hidden", b"x")
    try:
        assert read_all("memory://bucket/study") == CONTENTS
        with pytest.raises(FileNotFoundError):
            open_source("memory://bucket/study").read("missing", Buffer())
        with pytest.raises(SourceError, match="no files in it"):
            open_source("memory://bucket/empty").scan()
    finally:
        system.rm("/bucket", recursive=True)


class Bucket(http.server.BaseHTTPRequestHandler):
    """The part of S3 that listing and reading need; records every request."""

    requests: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes, kind: str = "binary/octet-stream", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(address.query)
        self.requests.append(f"{self.command} {address.path}")
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            items = "".join(
                f"<Contents><Key>study/{name}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;{hashlib.md5(content).hexdigest()}&quot;</ETag><Size>{len(content)}</Size></Contents>"
                for name, content in sorted(CONTENTS.items())
                if f"study/{name}".startswith(prefix)
            )
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
            self.answer(body.encode(), "application/xml")
        elif (name := address.path.removeprefix("/bucket/study/")) in CONTENTS:
            self.answer(CONTENTS[name])
        else:
            self.answer(b"<Error><Code>NoSuchKey</Code></Error>", "application/xml", 404)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Run an S3 server on this machine, and yield the requests that it receives."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    client = {"anon": True, "endpoint_url": f"http://127.0.0.1:{server.server_port}"}
    monkeypatch.setitem(fsspec.config.conf, "s3", client)
    Bucket.requests.clear()
    yield Bucket.requests
    server.shutdown()
    server.server_close()


def test_s3_is_listed_in_one_request_and_read_in_two_per_file(bucket: list[str]) -> None:
    source = open_source("s3://bucket/study")
    listing = source.scan()
    assert dict(zip(listing.paths, listing.sizes, strict=True)) == {k: len(v) for k, v in CONTENTS.items()}
    assert len(bucket) == 1
    for path, size, mtime_ns in zip(listing.paths, listing.sizes, listing.mtimes_ns, strict=True):
        bucket.clear()
        content, stamp = source.read(path, Buffer())
        assert bytes(content) == CONTENTS[path]
        assert stamp == (size, mtime_ns)
        assert bucket == [f"HEAD /bucket/study/{path}", f"GET /bucket/study/{path}"][: 2 if size else 1]
    with pytest.raises(FileNotFoundError):
        source.read("missing", Buffer())


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(111, "refused"), OSError(16, "SlowDown"), TimeoutError(110, "x"), RuntimeError("a\nb")],
)
def test_an_unavailable_server_is_not_a_damaged_file(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/a.dcm", b"first")

    def refuse(*arguments: object, **options: object) -> bytes:
        raise error

    try:
        monkeypatch.setattr(type(system), "cat_file", refuse)
        with pytest.raises(SourceError, match=f"^memory://bucket: {type(error).__name__}: .*; finished") as raised:
            open_source("memory://bucket").read("a.dcm", Buffer())
        assert "\n" not in str(raised.value)
        error = OSError(5, "of this file")
        with pytest.raises(OSError, match="of this file"):
            open_source("memory://bucket").read("a.dcm", Buffer())
    finally:
        system.rm("/bucket", recursive=True)


def test_an_unknown_protocol_is_one_line() -> None:
    with pytest.raises(SourceError, match="nonsense://x: ") as error:
        open_source("nonsense://x").scan()
    assert "\n" not in str(error.value)
