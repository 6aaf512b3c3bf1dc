"""An untrusted cache: its contents are checked, and none of its paths leads outside."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cache.files import canonical, with_checksum
from testkit.commits import commit_files, error_lines, head_of, identify
from testkit.small import Small, run


@pytest.fixture
def small(two_commits: Small, tmp_path: Path) -> Small:
    return two_commits.copy(tmp_path / "copy")


def set_table(commit: dict, private: dict) -> None:
    commit["attributes"]["metadata"] = {"file": "../outside.csv", "digest": commit["attributes"]["metadata"]["digest"]}


def set_absolute_table(commit: dict, private: dict) -> None:
    commit["attributes"]["metadata"]["file"] = "/tmp/outside.csv"


def set_digest(commit: dict, private: dict) -> None:
    commit["attributes"]["metadata"] = {"file": "tables/../../outside.csv", "digest": "../../outside"}


def set_rejects(commit: dict, private: dict) -> None:
    private["rejects_digest"] = "../../outside"


def set_before(commit: dict, private: dict) -> None:
    private["before"] = ["../../outside"]


def set_array(commit: dict, private: dict) -> None:
    [path] = [path for path in commit["arrays"] if path.startswith("images/")]
    commit["arrays"]["../outside"] = commit["arrays"].pop(path)
    commit["attributes"]["sizes"] = {"8": "../outside"}


def set_next_shard(commit: dict, private: dict) -> None:
    private["next_shard"] = 10**18


def set_nesting(commit: dict, private: dict) -> None:
    nested: list = []
    for _ in range(500):
        nested = [nested]
    commit["attributes"]["windows"] = nested


EDITS = [set_table, set_absolute_table, set_digest, set_rejects, set_before, set_array, set_next_shard, set_nesting]


@pytest.mark.parametrize("edit", EDITS)
def test_an_untrusted_commit_cannot_read_or_write_outside_the_cache(small, edit: Callable[[dict, dict], None]):
    head = head_of(small)
    commit = json.loads((small.out / "commits" / f"{head}.json").read_bytes())
    private = json.loads((small.out / ".pipeline" / "private" / f"{head}.json").read_bytes())
    edit(commit, private)
    commit["private"] = hashlib.sha256(canonical(private)).hexdigest()
    name = identify(commit)
    (small.out / "commits" / f"{name}.json").write_bytes(canonical(commit))
    (small.out / ".pipeline" / "private" / f"{name}.json").write_bytes(canonical(private))
    record = {"cache": commit["attributes"]["cache"], "commit": name, "sequence": 3}
    (small.out / ".pipeline" / "head").write_bytes(with_checksum(canonical(record)))
    root = json.loads((small.out / "zarr.json").read_bytes())
    root["attributes"] = commit["attributes"]
    (small.out / "zarr.json").write_bytes(canonical(root))
    around = sorted(path for path in small.folder.parent.rglob("*") if small.out not in path.parents)
    commands = [("verify", small.out, "--repair", "--src", small.src), ("info", small.out), ("gc", small.out, "--yes")]
    for command in (*commands, ("publish", small.out, f"file://{small.folder / 'there'}")):
        assert len(error_lines(run(*command, code=1).stderr)) == 1
    assert sorted(path for path in small.folder.parent.rglob("*") if small.out not in path.parents) == around


def test_a_folder_that_is_a_link_is_refused(small, tmp_path):
    outside = tmp_path / "outside"
    (small.out / "tables").rename(outside)
    (small.out / "tables").symlink_to(outside)
    assert "is a link" in error_lines(small.repair(code=1).stderr)[0]


def test_a_backup_of_another_commit_is_not_restored(small):
    """An untrusted backup may have a valid checksum and any content."""
    head = head_of(small)
    [other] = set(commit_files(small)) - {head}
    spares = small.out / ".pipeline" / "spares"
    shutil.copyfile(spares / f"{other}.zip", spares / f"{head}.zip")
    (small.out / "commits" / f"{head}.json").unlink()
    [line] = error_lines(small.repair(code=1).stderr)
    assert f"commit {head}, which is the current one, and its backup is lost" in line
