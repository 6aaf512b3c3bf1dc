"""Test wording that both commands share: counts with nouns, help, and errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import pipeline.cli.main
import pipeline.words
import training.cli.main
import training.words

COMMANDS = {"pipeline": "pipeline.cli.main", "train": "training.cli.main"}


def run_command(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from {COMMANDS[command]} import main; main(prog_name={command!r})"
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "80"})


@pytest.mark.parametrize("counted", [pipeline.words.counted, training.words.counted])
def test_counts_have_the_right_form_of_the_noun(counted):
    said = [counted(n, noun) for noun in ("patient", "study", "series") for n in (0, 1, 1000)]
    assert said[:3] == ["0 patients", "1 patient", "1,000 patients"]
    assert said[3:] == ["0 studies", "1 study", "1,000 studies", "0 series", "1 series", "1,000 series"]


@pytest.mark.parametrize("main", [pipeline.cli.main.main, training.cli.main.main])
def test_each_command_fits_on_a_line_of_the_help_at_80_columns(main):
    said = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    _, *lines, _ = said[said.index("Commands:") : said.index("Exit codes:")].split("\n")
    lines = [line for line in lines if line]
    assert [line.split()[0] for line in lines] == sorted(main.commands)
    assert not [line for line in lines if line.endswith("...")]


def test_both_commands_print_errors_and_wrong_usage_alike(tmp_path: Path):
    missing = tmp_path / "missing"
    forms = {}
    for command, act, wrong in (
        ("pipeline", ("info", missing), ("info",)),
        ("train", ("report", "--run", missing), ("report",)),
    ):
        error, usage = run_command(command, *act), run_command(command, *wrong)
        [line] = error.stderr.splitlines()
        assert (error.returncode, error.stdout, usage.returncode) == (1, "", 2)
        forms[command] = line.split(str(missing))[0], usage.stderr.splitlines()[-1][:6]
    assert forms["pipeline"] == forms["train"] == ("error: ", "Error:")
