"""Files and folders are whole or not there."""

import gzip
import hashlib
import os
import resource

import pytest

from nanochat import files


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.json"
    files.write_json(path, {"text": "größer 🙂", "n": [1, None]})
    assert files.read_json(path) == {"text": "größer 🙂", "n": [1, None]}
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as good as a full disk
    try:
        with pytest.raises(OSError):
            files.write_bytes(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old and os.listdir(path.parent) == ["file.json"]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[1,]", b"[" * 10**5])
def test_read_json_names_the_file(tmp_path, data):
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(ValueError, match="bad.json is not a valid JSON file"):
        files.read_json(tmp_path / "bad.json")


def test_json_of_any_size_is_not_read(tmp_path):
    (tmp_path / "f.json").write_text(" " * 200 + "1")
    assert files.read_json(tmp_path / "f.json") == 1
    with pytest.raises(ValueError, match="f.json is damaged: it has 201 bytes"):
        files.read_json(tmp_path / "f.json", max_bytes=200)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_read_jsonl_names_the_line(tmp_path, name):
    path = tmp_path / name
    pack = gzip.compress if name.endswith(".gz") else bytes
    path.write_bytes(pack('{"a": "größer"}\n\n[1]\n'.encode()))
    assert files.read_jsonl(path) == [{"a": "größer"}, [1]]
    path.write_bytes(pack(b"1\n\n{\n"))
    with pytest.raises(ValueError, match=f"{name}, line 3: not JSON"):
        files.read_jsonl(path)
    assert files.sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_is_the_old_or_the_new_wherever_a_crash_falls(tmp_path, monkeypatch):
    """Every call that changes a name is the last one once."""

    class Crash(BaseException):
        pass

    def make(content: str) -> None:
        path.with_name(".here.tmp").mkdir()
        (path.with_name(".here.tmp") / "file").write_text(content)
        files.publish(files.hidden(path, "tmp"), path)

    path, left = tmp_path / "here", 0
    make("old")
    for name in ("rename", "fsync", "rmdir"):
        real = getattr(os, name)

        def dying(*args, real=real, **kwargs):
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, dying)
    seen = set()
    for calls in range(5):
        left = calls
        try:
            make(f"new {calls}")
        except Crash:
            pass
        left = 1000
        files.recover(path)
        seen.add((path / "file").read_text())
        assert os.listdir(tmp_path) == ["here"]
    assert seen == {"old", "new 2", "new 3", "new 4"}
    files.remove(path)
    assert not os.listdir(tmp_path)
