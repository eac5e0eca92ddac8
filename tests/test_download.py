"""Downloads from a server that misbehaves in every way; the published shards on top of them."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import datafolder, dataset, fetch, repackage
from nanochat.download import DownloadError, download, download_all
from nanochat.files import read_json
from nanochat.sources import PUBLISHED, SOURCES


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


class Server:
    """Serves `files`; `moods[path]` is a list of how to misbehave, one for each request; `gates[path]` is an event that
    the second half of the file waits for."""

    def __init__(self):
        self.files, self.moods, self.log, self.etag, self.headers = {}, {}, [], True, {}
        self.retry_after, self.gates = "0", {}
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
                request.send_header("Retry-After", self.retry_after)
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
        body = body[: len(body) // 2] if mood == "drop" else bytes(len(body)) if mood == "wrong" else body
        request.wfile.write(body[: len(body) // 2])
        if request.path in self.gates:
            self.gates[request.path].wait(60)
        request.wfile.write(body[len(body) // 2 :])
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


def get(server, path, **options):
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
    path = get(server, tmp_path / "deep" / "f", sha256=SHA, size=len(DATA))
    assert path.read_bytes() == DATA and [p.name for p in path.parent.iterdir()] == ["f"]
    asked = len(server.log)
    assert asked == len(moods) + ("no ranges" not in moods)  # that one is a good answer
    get(server, path)
    assert len(server.log) == asked  # it is there: nothing is asked for


def test_download_goes_on_where_it_stopped(server, tmp_path):
    server.moods["/f"] = ["drop", 404]
    with pytest.raises(DownloadError, match="HTTP 404"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f").exists() and (tmp_path / "f.part").stat().st_size == len(DATA) // 2
    assert get(server, tmp_path / "f").read_bytes() == DATA
    assert server.log[-1][1] == f"bytes={len(DATA) // 2}-"


@pytest.mark.parametrize("when", ["1", "date"])
def test_a_busy_server_is_left_alone_as_long_as_it_asks(server, tmp_path, when):
    server.retry_after = formatdate(time.time() + 1.6, usegmt=True) if when == "date" else when
    server.moods["/f"] = [429]
    start = time.monotonic()
    get(server, tmp_path / "f")
    assert time.monotonic() - start > 0.6  # dates have whole seconds


def test_a_file_that_changed_is_fetched_from_the_start(server, tmp_path):
    server.moods["/f"] = ["drop", 404]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "f")
    server.files["/f"] = changed = DATA[::-1]
    assert download(server.url + "/f", tmp_path / "f").read_bytes() == changed


def test_a_changed_file_is_never_glued_to_the_old_one(server, tmp_path):
    """Though the server does not know If-Range, or has no name for a version at all."""
    for etag in (True, False):
        server.etag, server.moods["/f"] = etag, ["drop", 404]
        with pytest.raises(DownloadError):
            get(server, tmp_path / f"{etag}")
        server.files["/f"], server.moods["/f"] = DATA[::-1], ["no If-Range"]
        assert download(server.url + "/f", tmp_path / f"{etag}", delay=0.01).read_bytes() == DATA[::-1]


def test_the_time_of_the_last_change_names_a_version_too(server, tmp_path):
    server.etag, server.headers["Last-Modified"] = False, "Tue, 24 Nov 2026 08:00:00 GMT"
    server.moods["/f"] = ["drop", 404]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "f")
    server.moods["/f"] = ["no If-Range"]
    assert get(server, tmp_path / "f").read_bytes() == DATA
    assert server.log[-1][1] == f"bytes={len(DATA) // 2}-"


def test_a_part_that_is_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "f.part").write_bytes(DATA)
    assert get(server, tmp_path / "f", sha256=SHA).read_bytes() == DATA
    assert server.log == [("/f", f"bytes={len(DATA)}-", "")]


def test_redirects(server, tmp_path):
    server.files["/elsewhere"] = DATA
    server.moods |= {"/f": [302], "/loop": [308] * 100}
    assert get(server, tmp_path / "f").read_bytes() == DATA and server.log[-1][0] == "/elsewhere"
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
    assert get(server, tmp_path / "f", sha256=SHA).read_bytes() == DATA


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
    assert get(server, tmp_path / "f", **options).read_bytes() == DATA
    server.moods["/f"] = [mood] * 3
    with pytest.raises(DownloadError, match="3 attempts"):
        get(server, tmp_path / "g", attempts=3, **options)
    assert not (tmp_path / "g").exists()


def test_download_gives_up(server, tmp_path):
    server.moods["/f"] = [500] * 4
    with pytest.raises(DownloadError, match="HTTP 500 from the server .4 attempts"):
        get(server, tmp_path / "f", attempts=4)
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(server.url + "/absent", tmp_path / "f")
    assert len(server.log) == 5
    with pytest.raises(DownloadError, match="2 attempts"):
        download("http://127.0.0.1:1/f", tmp_path / "f", attempts=2, delay=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Published shards


FOLDER = "/datasets/karpathy/climbmix-400b-shuffle/resolve/main"


def path_of(number):
    return f"{FOLDER}/shard_{number:05d}.parquet"


def add_shard(server, number, size=20):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"shard {number} document {j}" for j in range(size)]}), buffer, row_group_size=8)
    server.files[path_of(number)] = buffer.getvalue()


@pytest.fixture
def published(server, monkeypatch):
    """A source of 6 shards, real parquet, the last one validation."""
    for i in range(6):
        add_shard(server, i)
    monkeypatch.setitem(PUBLISHED, "climbmix", replace(PUBLISHED["climbmix"], last=5, shard_mb=1))
    monkeypatch.setattr(datafolder, "GRACE", 0.2)
    return server


def test_published_shards(published, base, capsys):
    published.moods |= {path_of(0): ["drop", 429], path_of(5): [500, "short", "drop"]}
    published.etag = False
    dataset.fetch_published("climbmix", 3, mirror=published.url, workers=2, delay=0.01)
    assert [p.name for p in dataset.shards("climbmix", "train")] == [f"shard_0000{i}.parquet" for i in range(3)]
    assert [p.name for p in dataset.shards("climbmix", "val")] == ["shard_00005.parquet"]
    assert list(dataset.documents("climbmix", "val")) == [f"shard 5 document {j}" for j in range(20)]
    asked = len(published.log)
    dataset.main(dataset.Config(n=3, mirror=published.url))
    assert (
        len(published.log) == asked and read_json(base / "report" / "data.json")["metrics"]["train documents"] == "60"
    )
    dataset.fetch_published("climbmix", -1, mirror=published.url, delay=0.01)
    assert len(dataset.shards("climbmix", "train")) == 5 and len(dataset.shards("climbmix", "val")) == 1


def test_a_missing_shard_fails_the_command(published, base):
    published.moods[path_of(1)] = [404]
    published.files[path_of(2)] = b"PAR1 and then nothing that is parquet"
    with pytest.raises(SystemExit) as error:
        dataset.fetch_published("climbmix", 4, mirror=published.url, delay=0.001)
    said = str(error.value)
    assert "2 of 5 shards of climbmix are missing" in said and "Run the same command again" in said
    assert "train/shard_00001.parquet: " in said and "HTTP 404" in said
    assert "train/shard_00002.parquet: " in said and "no parquet file" in said
    with pytest.raises(SystemExit, match=r"(?s)train/shard_00001.parquet is missing and nobody.* -n 4 .* -n 2\."):
        list(dataset.documents("climbmix", "train"))  # they were asked for: silence would be another epoch of the rest
    del published.files[path_of(2)]
    with pytest.raises(SystemExit, match="1 of 5 shards"):
        dataset.fetch_published("climbmix", 4, mirror=published.url, delay=0.001)


def test_no_room_on_the_disk(published, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "climbmix", replace(PUBLISHED["climbmix"], shard_mb=10**9))
    with pytest.raises(SystemExit, match="Ask for fewer with -n"):
        dataset.fetch_published("climbmix", 4, mirror=published.url)
    assert not published.log


def test_training_can_read_while_shards_arrive(published, capsys, monkeypatch):
    dataset.fetch_published("climbmix", 1, mirror=published.url)
    published.gates[path_of(3)] = gate = threading.Event()
    thread = threading.Thread(target=dataset.fetch_published, args=("climbmix", 4, 8, published.url))
    thread.start()
    while not (dataset.data_dir("climbmix") / "train" / "shard_00002.parquet").exists():
        time.sleep(0.01)
    try:
        reader = dataset.documents("climbmix", "train")
        first = [next(reader) for _ in range(60)]
        with pytest.raises(SystemExit, match="right now"), datafolder.exclusive("climbmix"):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(datafolder.time, "sleep", lambda _: gate.set())  # it comes when somebody waits for it
            assert first + list(reader) == [f"shard {i} document {j}" for i in range(4) for j in range(20)]
        assert "waiting for shard_00003.parquet" in capsys.readouterr().out
    finally:
        gate.set()
        thread.join()
    with pytest.raises(SystemExit, match="nobody is fetching it"):
        dataset.wait_for(dataset.data_dir("climbmix") / "train" / "shard_00004.parquet")


# ---------------------------------------------------------------------------------------------------------------------
# The command, as a process of its own


# Imports once and runs each order, a line of JSON, as a child of its own; a line with a pid waits for that child.
PARENT = """
import json, os, resource, sys
from nanochat import dataset
from nanochat.configurator import parse
for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, int):
        print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        os.environ["NANOCHAT_BASE_DIR"], limit = order["base"], order["limit"] or resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.dup2(os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        try:
            dataset.main(parse(dataset.Config, order["flags"]))
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
"""


@pytest.fixture(scope="module")
def parent():
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(order):
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.stdout.close()
    process.wait()


@pytest.fixture
def start(parent, server, base, tmp_path):
    """start(*flags): the pid of `python -m nanochat.dataset`; what it says is in tmp_path / "said"."""

    def start(*flags, limit=0):
        order = {"base": str(base), "output": str(tmp_path / "said"), "limit": limit}
        return parent(order | {"flags": [f"--mirror={server.url}", *flags]})

    return start


def shard_file(split, number):
    return dataset.data_dir("climbmix") / split / f"shard_{number:05d}.parquet"


def test_a_download_that_is_killed_goes_on_where_it_was(server, parent, start, monkeypatch, tmp_path):
    for number in (0, 1, 2, 6542):  # the real table: its last shard is validation
        add_shard(server, number, size=20_000)
    server.gates[path_of(0)] = threading.Event()
    pid = start("-n=3", "-w=1")
    part = shard_file("train", 0).with_name("shard_00000.parquet.part")
    while not (part.exists() and part.stat().st_size > 1 << 14):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert parent(pid) == -signal.SIGKILL
    server.gates.pop(path_of(0)).set()
    assert shard_file("val", 6542).exists() and not shard_file("train", 0).exists()
    monkeypatch.setattr(datafolder, "GRACE", 0.2)
    with pytest.raises(SystemExit, match="is missing and nobody is fetching it"):
        dataset.wait_for(shard_file("train", 0))
    had, asked = part.stat().st_size, len(server.log)
    # Two at once: one fetches, the other waits for it and finds everything there.
    server.gates[path_of(0)] = threading.Event()
    both = [start("-n=3"), start("-n=3")]
    while "Waiting for it" not in (tmp_path / "said").read_text():
        time.sleep(0.01)
    server.gates[path_of(0)].set()
    assert [parent(pid) for pid in both] == [0, 0], (tmp_path / "said").read_text()
    again = [(path[-13:-8], asked) for path, asked, _ in server.log[asked:]]
    assert sorted(again) == [("00000", f"bytes={had}-"), ("00001", ""), ("00002", "")]
    assert len(list(dataset.documents("climbmix", "train"))) == 60_000


def test_a_full_disk_stops_the_download_and_loses_nothing(server, parent, start, tmp_path):
    """A limit on the size of files looks to a program like a full disk, but for the number of the error."""
    for number in (0, 6542):
        add_shard(server, number, size=20_000)
    assert parent(start("-n=1", limit=50_000)) == 1
    said = (tmp_path / "said").read_text()
    assert "There is no room for" in said and "the same command goes on from there" in said
    assert parent(start("-n=1")) == 0
    assert any(asked == "bytes=50000-" for _, asked, _ in server.log)
    assert len(list(dataset.documents("climbmix", "train"))) == 20_000


def test_training_can_begin_when_the_first_shards_are_here(server):
    for number in (*range(9), 6542):
        add_shard(server, number)
    server.gates[path_of(8)] = threading.Event()
    process = fetch.fetch_in_background("climbmix", 9, 8, server.url, first=8)
    assert not shard_file("train", 8).exists() and len(dataset.shards("climbmix", "train")) == 9
    server.gates[path_of(8)].set()
    assert len(list(dataset.documents("climbmix", "train"))) == 180
    assert process.wait() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Shards made anew


def test_shards_are_made_anew_from_what_they_were_made_of(server, base, monkeypatch):
    """From a listing, with a file that fails once and ids of tokens; every document once, in a random order."""
    monkeypatch.setitem(PUBLISHED, "climbmix", replace(PUBLISHED["climbmix"], upstream="nvidia/Nemotron-ClimbMix/part"))
    texts = [f"document {i} " + "x" * (i % 50) for i in range(9000)]
    names = [f"part/{i}.parquet" for i in range(3)]
    for number, name in enumerate(names):
        tokens = [[ord(letter) for letter in text] for text in texts[number * 3000 : (number + 1) * 3000]]
        pq.write_table(pa.table({"tokens": tokens}), buffer := io.BytesIO(), row_group_size=700)
        server.files[f"/datasets/nvidia/Nemotron-ClimbMix/resolve/main/{name}"] = buffer.getvalue()
    server.moods[f"/datasets/nvidia/Nemotron-ClimbMix/resolve/main/{names[1]}"] = ["drop"]
    listing = json.dumps([{"path": name} for name in ["part", *names]]).encode()
    server.files["/api/datasets/nvidia/Nemotron-ClimbMix/tree/main/part?recursive=true"] = listing
    monkeypatch.setattr(fetch, "gpt2_decoder", lambda: lambda ids: "".join(map(chr, ids)))
    monkeypatch.setattr(repackage, "BUCKET_CHARACTERS", 500_000)  # so there are some buckets
    monkeypatch.setattr(repackage, "BUFFER_CHARACTERS", 20_000)
    monkeypatch.setattr(fetch, "SHARD_CHARACTERS", 60_000)
    dataset.main(dataset.Config(source="climbmix", prepare=True, mirror=server.url))
    read = list(dataset.documents("climbmix", "train"))
    assert sorted(read + list(dataset.documents("climbmix", "val"))) == sorted(texts)
    shards = dataset.shards("climbmix", "train") + dataset.shards("climbmix", "val")
    assert [path.name for path in shards] == [f"shard_{i:05d}.parquet" for i in range(len(shards))] and len(shards) > 3
    for path in shards:
        group = pq.read_metadata(path).row_group(0)
        assert group.num_rows == 1024 and group.column(0).compression == "ZSTD"
    place = [int(text.split()[1]) for text in read]
    neighbours = sum(abs(a - b) for a, b in zip(place, place[1:])) / len(place)
    assert 2800 < neighbours < 3200  # a third of all, if the order is random
    assert sorted(p.name for p in (base / "data").iterdir() if p.is_dir()) == ["climbmix", "climbmix-upstream"]
    first = [path.read_bytes() for path in shards]
    upstream = base / "data" / "climbmix-upstream"
    dataset.main(dataset.Config(source="climbmix", prepare=True, from_path=upstream))
    assert [path.read_bytes() for path in shards] == first
    with pytest.raises(SystemExit, match="was made by --prepare"):
        dataset.main(dataset.Config(n=1, mirror=server.url))
    with pytest.raises(SystemExit, match="no column 'text'; it has tokens"):
        dataset.main(dataset.Config(source="fineweb", prepare=True, from_path=upstream))
    with pytest.raises(SystemExit, match="HTTP 404"):
        dataset.main(dataset.Config(source="fineweb", prepare=True, mirror=server.url))
    with pytest.raises(SystemExit, match="tree/main.* cannot be read: .* Is there a network"):
        dataset.main(dataset.Config(source="fineweb", prepare=True, mirror="http://127.0.0.1:9"))


def test_conversations_and_the_table_of_sources(server, base, capsys):
    for _, file in SOURCES["smoltalk"].files:
        server.files[f"/datasets/HuggingFaceTB/smol-smoltalk/resolve/main/data/{file}"] = b"rows"
    dataset.main(dataset.Config(source="smoltalk", mirror=server.url))
    assert len(list((base / "evals").glob("smoltalk_*.parquet"))) == 5
    dataset.main(dataset.Config())
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in (*SOURCES, "--from PATH", "5 files"))
    for flag in ("background", "prepare"):
        with pytest.raises(SystemExit, match="climbmix or fineweb"):
            dataset.main(dataset.Config(source="wiki", **{flag: True}))
