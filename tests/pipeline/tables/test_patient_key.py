"""The patient key: created once, readable by its owner only, and never sent."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import CacheError, CatalogError
from pipeline.tables import patients
from pipeline.tables.patients import PatientKey, default_key_file, key_digest, read_key


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def key_file(folder: Path, digits: str = "0f" * 32, mode: int = 0o600) -> Path:
    file = folder / "patient.key"
    file.write_text(digits + "\n")
    file.chmod(mode)
    return file


def test_the_default_key_is_created_once_and_never_readable_by_others(monkeypatch):
    seen = []
    monkeypatch.setattr(patients.os, "link", lambda a, b: (seen.append(os.stat(a).st_mode & 0o777), os.rename(a, b)))
    monkeypatch.setattr(Path, "unlink", lambda self, **_: None)
    before = os.umask(0)
    try:
        key = read_key(None)
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert len(key) == 32
    assert default_key_file().stat().st_mode & 0o777 == 0o600
    assert default_key_file().parent.stat().st_mode & 0o777 == 0o700
    assert read_key(None) == key


def test_concurrent_first_commands_use_the_same_key(tmp_path, monkeypatch):
    commands = 6
    for turn in range(20):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / str(turn)))
        start = threading.Barrier(commands)

        def first_command(_: int, start: threading.Barrier = start) -> bytes:
            start.wait()
            return read_key(None)

        with ThreadPoolExecutor(commands) as pool:
            keys = set(pool.map(first_command, range(commands)))
        assert keys == {read_key(None)}
        assert [file.name for file in default_key_file().parent.iterdir()] == ["patient.key"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o622])
def test_a_key_that_is_open_to_others_is_refused_until_the_advice_is_followed(tmp_path, mode):
    file = key_file(tmp_path, mode=mode)
    with pytest.raises(CatalogError, match=f"the patient key is open to other users; run: chmod 600 {file}"):
        read_key(file)
    file.chmod(0o600)
    assert read_key(file) == b"\x0f" * 32


@pytest.mark.parametrize("content", [b"", b"0f" * 31, b"xyz" * 32, b"\xff" * 64])
def test_an_invalid_key_is_reported(tmp_path, content):
    file = key_file(tmp_path)
    file.write_bytes(content)
    with pytest.raises(CatalogError, match="is not a patient key"):
        read_key(file)


def test_a_key_that_cannot_be_created_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(CatalogError, match=r"the patient key cannot be created .*; give --patient-key FILE"):
        read_key(None)


def test_a_key_is_pickled_as_the_path_of_its_file(tmp_path):
    key = read_key(key_file(tmp_path))
    sent = pickle.dumps({"key": key})
    assert bytes(key) not in sent
    assert key.hex().encode() not in sent
    received = pickle.loads(sent)["key"]
    assert received == key
    assert isinstance(received, PatientKey)


def test_another_or_a_missing_key_on_a_worker_is_reported(tmp_path):
    sent = pickle.dumps(read_key(key_file(tmp_path)))
    key_file(tmp_path, "ab" * 32)
    with pytest.raises(CacheError, match=r"worker on .*: is not the build's patient key"):
        pickle.loads(sent)
    (tmp_path / "patient.key").unlink()
    with pytest.raises(CacheError, match=r"worker on .* under the same path"):
        pickle.loads(sent)


def test_the_digest_identifies_a_key_without_revealing_it(tmp_path):
    key = read_key(key_file(tmp_path))
    assert key_digest(key) == key_digest(bytes(key)) != key_digest(b"\x0e" * 32)
    assert key.hex()[:8] not in key_digest(key)
