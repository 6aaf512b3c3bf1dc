"""A cache is uploaded completely with the root last; a second upload sends only what has changed."""

import itertools
import os
import shutil
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import zarr

from pipeline.cache.lock import publisher_lock
from pipeline.upkeep import publish as module
from pipeline.upkeep.targets import FolderTarget
from testkit.commits import same_content
from testkit.small import LONG_AGO_NS, Small, run, slice_bytes, write


@pytest.fixture
def small(three_shards: Small, tmp_path: Path) -> Small:
    return three_shards.copy(tmp_path)


class Recording(FolderTarget):
    """A folder target that records the names of the files written to it, in order."""

    written: ClassVar[list[str]] = []

    def write(self, name, content):
        self.written.append(name)
        super().write(name, content)

    def send(self, root, names):
        self.written.extend(names)
        super().send(root, names)


@pytest.fixture
def sent(monkeypatch) -> list[str]:
    """The names of all files sent, in order."""
    monkeypatch.setattr(Recording, "written", [])
    monkeypatch.setattr(module, "open_target", lambda address: Recording(Path(address.removeprefix("file://"))))
    return Recording.written


def test_a_folder_receives_the_commit_and_nothing_private(small, tmp_path, sent):
    there = tmp_path / "there"
    assert "files sent" in run("publish", small.out, f"file://{there}").stdout
    same_content(small.out, there)
    assert not (there / ".pipeline").exists()
    assert sent[-2:] == ["zarr.json", "metadata.csv"]
    everything = b"".join(path.read_bytes() for path in there.rglob("*") if path.is_file())
    for private in (str(small.src), small.src.name, "003.dcm"):
        assert private.encode() not in everything


def test_only_missing_files_are_sent(small, tmp_path, sent):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    first = set(sent)
    write(small.src / "new.dcm", slice_bytes(77))
    small.build()
    sent.clear()
    run("publish", small.out, f"file://{there}")
    shards = {file for file in sent if "/c/" in file}
    assert shards
    assert not shards & first
    same_content(small.out, there)


def test_changed_tables_of_the_same_size_are_sent(small, tmp_path):
    small.labels = {f"1.2.3.0.{number}": number % 2 for number in range(20)}
    for flip in (0, 1):
        small.labels = {uid: label ^ flip for uid, label in small.labels.items()}
        small.build()
        run("publish", small.out, f"file://{tmp_path / 'there'}")
        same_content(small.out, tmp_path / "there")


def test_an_incomplete_upload_leaves_the_old_commit_and_can_be_resumed(small, tmp_path, monkeypatch):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    before = (there / "zarr.json").read_bytes()
    write(small.src / "new.dcm", slice_bytes(77))
    small.build()
    with monkeypatch.context() as patch:
        patch.setattr(FolderTarget, "send", lambda *arguments: None)
        outcome = run("publish", small.out, f"file://{there}", code=1)
    assert "did not arrive complete; run the command again" in outcome.stderr
    assert (there / "zarr.json").read_bytes() == before
    run("publish", small.out, f"file://{there}")
    same_content(small.out, there)


# --- the owner of an address ---------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_an_address_with_another_cache_is_refused_and_unchanged(small, tmp_path, kind):
    """The sums files have the same names and sizes, so comparing sizes would mix the two caches."""
    address = f"{kind}://{tmp_path / 'there'}"
    run("publish", small.out, address)
    other = Small(tmp_path / "other")
    other.folder.mkdir()
    for number in range(20):
        write(other.src / f"{number:03d}.dcm", slice_bytes(number, content=1))
    other.build()
    system, top = fsspec.core.url_to_fs(address)
    before = {name: system.cat_file(name) for name in system.find(top)}
    assert "holds another cache" in run("publish", other.out, address, code=1).stderr
    assert {name: system.cat_file(name) for name in system.find(top)} == before


def test_an_address_with_unrelated_files_is_refused(small, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    assert "holds files that do not belong" in run("publish", small.out, f"file://{tmp_path / 'there'}", code=1).stderr
    assert tree(tmp_path / "there") == {"notes.txt": b"mine"}


def test_a_diverged_copy_is_refused(small, tmp_path):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    copy = Small(tmp_path / "copy")
    shutil.copytree(small.out, copy.out)
    shutil.copytree(small.src, copy.src)
    for each, content in ((small, 1), (copy, 2)):
        write(each.src / "new.dcm", slice_bytes(77, content))
        each.build()
    run("publish", small.out, f"file://{there}")
    assert "which this cache does not know" in run("publish", copy.out, f"file://{there}", code=1).stderr
    same_content(small.out, there)


def test_shards_with_other_bytes_of_the_same_size_are_sent(small, tmp_path, sent):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    for path in [*there.glob("published/*"), *there.glob("sums/*/c/0/0/0")]:
        path.unlink() if path.parent.name == "published" else path.write_bytes(bytes(path.stat().st_size))
    run("publish", small.out, f"file://{there}")
    for path in small.out.glob("sums/*/c/*/0/0"):
        assert path.read_bytes() == (there / path.relative_to(small.out)).read_bytes()


def test_the_commit_at_the_start_is_the_one_published(small, tmp_path, monkeypatch):
    """Files next to the root may change during the upload; readers there see the complete commit."""
    there, head = tmp_path / "there", zarr.open_group(small.out, mode="r").attrs["commit"]
    send = FolderTarget.send

    def send_and_build(self, root, names):
        send(self, root, names)
        write(small.src / "new.dcm", slice_bytes(77))
        assert "is working on it" in small.build(code=1).stderr
        (small.out / "zarr.json").write_bytes(b"of another")

    monkeypatch.setattr(FolderTarget, "send", send_and_build)
    run("publish", small.out, f"file://{there}")
    assert zarr.open_group(there, mode="r").attrs["commit"] == head


def test_a_second_publisher_is_refused(small, tmp_path):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    with publisher_lock(small.cache):
        assert "another process is publishing it" in run("publish", small.out, f"file://{there}", code=1).stderr
    (there / "publishing.json").write_text('{"from": "elsewhere", "since": "yesterday"}')
    assert "another publisher has been working there since yesterday" in run(
        "publish", small.out, f"file://{there}", code=1
    ).stderr  # fmt: skip
    run("publish", small.out, f"file://{there}", "--take-over")
    assert not (there / "publishing.json").exists()


def test_a_publisher_killed_at_any_step_leaves_one_commit_and_the_command_resumes(small, tmp_path):
    there = tmp_path / "there"
    run("publish", small.out, f"file://{there}")
    for step in itertools.count(0, 3):
        small.labels = {f"1.2.3.0.{number}": (number + step) % 2 for number in range(20)}
        write(small.src / "003.dcm", slice_bytes(3, content=step), LONG_AGO_NS + (step + 1) * 10**9)
        views = {view(there)}
        small.build()
        views.add(view(small.out))
        killed = dies_at_write(small, there, step)
        assert view(there) in views
        run("publish", small.out, f"file://{there}")
        assert view(there) == view(small.out)
        assert not list(there.rglob("*.partial"))
        if not killed:
            break
    assert step > 15


def view(cache: Path) -> tuple[str, bytes, bytes]:
    """Return what a reader sees: the commit's id, its table and all its pixels."""
    group = zarr.open_group(cache, mode="r")
    table = (cache / str(group.attrs["metadata"]["file"])).read_bytes()
    rows = [int(line.split(b",")[0]) for line in table.splitlines()[1:]]
    images = b"".join(group[path][row].tobytes() for path in group.attrs["sizes"].values() for row in rows)
    return str(group.attrs["commit"]), table, images


def dies_at_write(small: Small, there: Path, step: int) -> bool:
    """Publish in a process that dies at its `step`-th rename, link or removal; return whether it got that far."""
    pid = os.fork()
    if pid == 0:
        left = [step]

        def or_die(call):
            def counting(*arguments, **options):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return call(*arguments, **options)

            return counting

        try:
            for name in ("replace", "link", "unlink"):
                setattr(os, name, or_die(getattr(os, name)))
            run("publish", small.out, f"file://{there}")
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_failed_upload_is_one_line(small, tmp_path):
    assert "has no commit yet" in run("publish", tmp_path / "empty", "memory://x", code=1).stderr
    assert "nonsense" in run("publish", small.out, "nonsense://x", code=1).stderr
    shard = next(small.out.glob("images/*/c/1/0/0/0"))
    shard.unlink()
    assert f"{shard}: missing; run: pipeline verify" in run("publish", small.out, "memory://x", code=1).stderr
