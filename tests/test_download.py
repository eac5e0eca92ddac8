"""Downloads from a server that misbehaves in every way; the published shards on top of them."""

import gzip
import hashlib
import io
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import dataset
from nanochat.common import read_json
from nanochat.download import DownloadError, download, download_all


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


class Server:
    """Serves `files`; `moods[path]` is a list of how to misbehave, one for each request."""

    def __init__(self):
        self.files, self.moods, self.log, self.etag, self.headers = {}, {}, [], True, {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, request):
        asked = request.headers.get("Range", "")
        mood = self.moods.get(request.path, [])
        mood = mood.pop(0) if mood else ""
        self.log.append((request.path, asked, mood))
        if isinstance(mood, int) or request.path not in self.files:
            request.send_response(mood or 404)
            if mood == 429:
                request.send_header("Retry-After", "0")
            if mood in (302, 308):
                request.send_header("Location", "/loop" if request.path == "/loop" else "/elsewhere")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        data = self.files[request.path]
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        start = int(asked[6:-1]) if asked else 0
        if mood == "no ranges" or mood != "no If-Range" and request.headers.get("If-Range", etag) != etag:
            start = 0
        if start and start >= len(data):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(data)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = data[start:]
        request.send_response(206 if start else 200)
        if start:
            said = start + 7 if mood == "wrong range" else start
            request.send_header("Content-Range", f"bytes {said}-{len(data) - 1}/{len(data)}")
        if self.etag:
            request.send_header("ETag", etag)
        for name, value in self.headers.items():
            request.send_header(name, value)
        if mood == "short":  # a whole answer, as HTTP sees it, with half of the file
            body = body[: len(body) // 2]
        promised = {"promises more": 2 * len(body), "promises less": len(body) // 2}.get(mood, len(body))
        if mood != "promises nothing":
            request.send_header("Content-Length", str(promised))
        request.close_connection = mood.startswith("promises")
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if mood == "drop" else bytes(len(body)) if mood == "wrong" else body)
        if mood == "drop":
            request.close_connection = True

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


DATA = bytes(range(256)) * 4000
SHA = hashlib.sha256(DATA).hexdigest()


def fetch(server, path, **options):
    server.files["/f"] = DATA
    return download(server.url + "/f", path, delay=0.01, **options)


@pytest.mark.parametrize(
    "moods",
    [
        [],
        [500, 503],
        [429],
        ["drop"],
        ["drop", "drop", 500, "drop"],
        ["drop", "no ranges"],
        ["drop", "wrong range"],
        ["promises more"],
        ["promises less"],
        ["drop", "promises more"],
    ],
)
def test_download_gets_there(server, tmp_path, moods):
    server.moods["/f"] = list(moods)
    path = fetch(server, tmp_path / "deep" / "f", sha256=SHA, size=len(DATA))
    assert path.read_bytes() == DATA and [p.name for p in path.parent.iterdir()] == ["f"]
    asked = len(server.log)
    assert asked == len(moods) + ("no ranges" not in moods)  # that one is a good answer
    fetch(server, path)
    assert len(server.log) == asked  # it is there: nothing is asked for


def test_download_goes_on_where_it_stopped(server, tmp_path):
    server.moods["/f"] = ["drop", 404]
    with pytest.raises(DownloadError, match="HTTP 404"):
        fetch(server, tmp_path / "f")
    assert not (tmp_path / "f").exists() and (tmp_path / "f.part").stat().st_size == len(DATA) // 2
    assert fetch(server, tmp_path / "f").read_bytes() == DATA
    assert server.log[-1][1] == f"bytes={len(DATA) // 2}-"


def test_a_file_that_changed_is_fetched_from_the_start(server, tmp_path):
    server.moods["/f"] = ["drop", 404]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "f")
    server.files["/f"] = changed = DATA[::-1]
    assert download(server.url + "/f", tmp_path / "f").read_bytes() == changed


def test_a_changed_file_is_never_glued_to_the_old_one(server, tmp_path):
    """Though the server does not know If-Range, or has no name for a version at all."""
    for etag in (True, False):
        server.etag, server.moods["/f"] = etag, ["drop", 404]
        with pytest.raises(DownloadError):
            fetch(server, tmp_path / f"{etag}")
        server.files["/f"], server.moods["/f"] = DATA[::-1], ["no If-Range"]
        assert download(server.url + "/f", tmp_path / f"{etag}", delay=0.01).read_bytes() == DATA[::-1]


def test_the_time_of_the_last_change_names_a_version_too(server, tmp_path):
    server.etag, server.headers["Last-Modified"] = False, "Tue, 24 Nov 2026 08:00:00 GMT"
    server.moods["/f"] = ["drop", 404]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "f")
    server.moods["/f"] = ["no If-Range"]
    assert fetch(server, tmp_path / "f").read_bytes() == DATA
    assert server.log[-1][1] == f"bytes={len(DATA) // 2}-"


def test_a_part_that_is_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "f.part").write_bytes(DATA)
    assert fetch(server, tmp_path / "f", sha256=SHA).read_bytes() == DATA
    assert server.log == [("/f", f"bytes={len(DATA)}-", "")]


def test_redirects(server, tmp_path):
    server.files["/elsewhere"] = DATA
    server.moods |= {"/f": [302], "/loop": [308] * 100}
    assert fetch(server, tmp_path / "f").read_bytes() == DATA and server.log[-1][0] == "/elsewhere"
    with pytest.raises(DownloadError, match="(?i)redirect"):
        download(server.url + "/loop", tmp_path / "g", attempts=2, delay=0.01)


def test_a_redirect_does_not_lose_the_encryption(tmp_path):
    def answer(request):
        if request.url.scheme == "https":
            return httpx.Response(302, headers={"Location": "http://elsewhere/f"})
        return httpx.Response(200, content=b"anything")

    with httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        with pytest.raises(DownloadError, match="http://elsewhere/f, which is not encrypted"):
            download("https://here/f", tmp_path / "f", client=client)
    assert not (tmp_path / "f").exists()


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == ".gz":
        return gzip.compress(DATA, 1)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.csv", DATA)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [".gz", ".zip"])
def test_a_truncated_archive_is_never_taken_for_complete(server, tmp_path, kind):
    """The server says nothing of its size, or lies, and there is no hash: the archive itself has to tell."""
    whole = archive(kind)
    server.files["/f"] = whole
    server.moods["/f"] = ["promises less", "short", "promises nothing"]
    assert download(server.url + "/f", tmp_path / f"a{kind}", delay=0.01).read_bytes() == whole
    middle = len(whole) // 2
    for bad in (whole[:-1], whole[:middle], whole[:middle] + b"x" + whole[middle + 1 :], b"", b"<html>no</html>"):
        server.files["/f"] = bad
        with pytest.raises(DownloadError, match=f"no whole {kind} archive|damaged"):
            download(server.url + "/f", tmp_path / f"b{kind}", attempts=1)
        assert not (tmp_path / f"b{kind}").exists()


def test_many_at_once_with_one_list_of_what_is_missing(server, tmp_path, capsys):
    for i in range(12):
        server.files[f"/{i}"] = DATA[i:]
    server.moods |= {"/3": [404], "/5": [500] * 9, "/7": ["drop", "drop"]}
    jobs = [(f"{server.url}/{i}", tmp_path / str(i)) for i in range(12)]
    failed = download_all(jobs, workers=4, delay=0.01, attempts=3)
    assert sorted(path.name for path in failed) == ["3", "5"]
    assert "HTTP 404" in failed[tmp_path / "3"] and "HTTP 500" in failed[tmp_path / "5"]
    assert all((tmp_path / str(i)).read_bytes() == DATA[i:] for i in range(12) if i not in (3, 5))
    assert "12/12 files" in capsys.readouterr().err


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "f.part").write_bytes(DATA + b"more")
    assert fetch(server, tmp_path / "f", sha256=SHA).read_bytes() == DATA


@pytest.mark.parametrize(
    ("mood", "published"),  # a size cannot tell wrong bytes
    [(mood, published) for mood in ("short", "wrong") for published in ("sha256", "hub", "check")]
    + [("short", "size")],
)
def test_wrong_content_is_never_taken_for_the_file(server, tmp_path, mood, published):
    if published == "hub":
        server.headers["X-Linked-ETag"] = f'"{SHA}"'
    options = {"sha256": {"sha256": SHA}, "size": {"size": len(DATA)}}.get(published, {})
    if published == "check":

        def check(path):
            if path.read_bytes() != DATA:
                raise ValueError("this is not it")

        options = {"check": check}
    server.moods["/f"] = [mood]
    assert fetch(server, tmp_path / "f", **options).read_bytes() == DATA
    server.moods["/f"] = [mood] * 3
    with pytest.raises(DownloadError, match="3 attempts"):
        fetch(server, tmp_path / "g", attempts=3, **options)
    assert not (tmp_path / "g").exists()


def test_download_gives_up(server, tmp_path):
    server.moods["/f"] = [500] * 4
    with pytest.raises(DownloadError, match="HTTP 500 from the server .4 attempts"):
        fetch(server, tmp_path / "f", attempts=4)
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(server.url + "/absent", tmp_path / "f")
    assert len(server.log) == 5
    with pytest.raises(DownloadError, match="2 attempts"):
        download("http://127.0.0.1:1/f", tmp_path / "f", attempts=2, delay=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Published shards


@pytest.fixture
def published(server, monkeypatch):
    """A source of 6 shards, real parquet, the last one validation."""
    for i in range(6):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": [f"shard {i} document {j}" for j in range(20)]}), buffer, row_group_size=8)
        server.files[f"/shard_{i:05d}.parquet"] = buffer.getvalue()
    monkeypatch.setitem(dataset.PUBLISHED, "climbmix", dataset.Source(server.url, 5, 1))
    return server


def test_published_shards(published, base, capsys):
    published.moods |= {"/shard_00000.parquet": ["drop", 429], "/shard_00005.parquet": [500, "short", "drop"]}
    published.etag = False
    dataset.fetch_published("climbmix", 3, workers=2, delay=0.01)
    assert [p.name for p in dataset.shards("climbmix", "train")] == [f"shard_0000{i}.parquet" for i in range(3)]
    assert [p.name for p in dataset.shards("climbmix", "val")] == ["shard_00005.parquet"]
    assert list(dataset.documents("climbmix", "val")) == [f"shard 5 document {j}" for j in range(20)]
    asked = len(published.log)
    dataset.main(dataset.Config(n=3))
    assert (
        len(published.log) == asked and read_json(base / "report" / "data.json")["metrics"]["train documents"] == "60"
    )
    dataset.fetch_published("climbmix", -1, delay=0.01)
    assert len(dataset.shards("climbmix", "train")) == 5 and len(dataset.shards("climbmix", "val")) == 1


def test_a_missing_shard_fails_the_command(published, base):
    published.moods["/shard_00001.parquet"] = [404]
    published.files["/shard_00002.parquet"] = b"PAR1 and then nothing that is parquet"
    with pytest.raises(SystemExit) as error:
        dataset.fetch_published("climbmix", 4, delay=0.001)
    said = str(error.value)
    assert "2 of 5 shards of climbmix are missing" in said and "Run the same command again" in said
    assert "train/shard_00001.parquet: " in said and "HTTP 404" in said
    assert "train/shard_00002.parquet: " in said and "no parquet file" in said
    assert [p.name for p in dataset.shards("climbmix", "train")] == ["shard_00000.parquet", "shard_00003.parquet"]
    del published.files["/shard_00002.parquet"]
    published.moods["/shard_00002.parquet"] = []
    with pytest.raises(SystemExit, match="1 of 5 shards"):
        dataset.fetch_published("climbmix", 4, delay=0.001)


def test_no_room_on_the_disk(published, monkeypatch):
    monkeypatch.setitem(dataset.PUBLISHED, "climbmix", dataset.Source(published.url, 5, 10**9))
    with pytest.raises(SystemExit, match="Ask for fewer with -n"):
        dataset.fetch_published("climbmix", 4)
    assert not published.log


def test_training_can_read_while_shards_arrive(published, capsys):
    dataset.fetch_published("climbmix", 1)
    gate, slow = threading.Event(), published.answer

    def answer(request):
        if "00003" in request.path:
            gate.wait(10)
        slow(request)

    published.answer = answer
    thread = threading.Thread(target=dataset.fetch_published, args=("climbmix", 4))
    thread.start()
    while not (dataset.data_dir("climbmix") / "train" / "shard_00002.parquet").exists():
        time.sleep(0.01)
    try:
        reader = dataset.documents("climbmix", "train")
        first = [next(reader) for _ in range(60)]
        with pytest.raises(SystemExit, match="right now"):
            dataset.fetch_published("climbmix", 4)
        threading.Timer(0.3, gate.set).start()
        assert first + list(reader) == [f"shard {i} document {j}" for i in range(4) for j in range(20)]
        assert "waiting for shard_00003.parquet" in capsys.readouterr().out
    finally:
        gate.set()
        thread.join()
    with pytest.raises(SystemExit, match="nobody is fetching it"):
        dataset.wait_for(dataset.data_dir("climbmix") / "train" / "shard_00004.parquet")
