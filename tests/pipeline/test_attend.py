"""`pipeline attend` builds the caches requested on stdin, answers each in a line, and continues after errors."""

import json
from pathlib import Path

from click.testing import CliRunner

from pipeline.cli.main import main
from testkit import small


def attend(*lines: str) -> list[dict]:
    said = CliRunner().invoke(main, ["attend"], input="".join(f"{line}\n" for line in lines))
    assert said.exit_code == 0, said.output
    return [json.loads(line) for line in said.stdout.splitlines()]


def test_its_caches_equal_those_of_build_despite_invalid_requests(tmp_path: Path) -> None:
    made = small.Small(tmp_path)
    small.write_slices(made.src, range(3))
    made.build()
    outs = [tmp_path / "first.zarr", tmp_path / "second.zarr"]
    options = ["--src", made.src, "--catalog", tmp_path / "catalog.yaml", "--workers", 0]
    first, second = (json.dumps([*map(str, options), "--out", str(out)]) for out in outs)
    nothing = json.dumps(["--src", str(tmp_path / "nothing"), "--out", str(tmp_path / "third.zarr")])
    answers = attend(first, nothing, json.dumps(["--huh"]), "{", json.dumps(7), second)
    assert [answer["exit_code"] for answer in answers] == [0, 1, 2, 1, 1, 0]
    assert "3 slices from 3 files" in answers[0]["said"]
    assert answers[1]["said"].splitlines()[-1].startswith("error: ")
    assert "No such option '--huh'" in answers[2]["said"]
    digests = {small.run("info", "--digest", out).output for out in (made.out, *outs)}
    assert len(digests) == 1


def test_it_ends_with_its_input() -> None:
    assert attend() == []
