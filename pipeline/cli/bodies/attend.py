"""The body of `attend`: builds one after another as they are asked for, with all imports paid once."""

import io
import json
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import TextIO

import click

from pipeline.cache import committing
from pipeline.cli.bodies import build as build_body
from pipeline.engine import convert
from pipeline.tables import tables
from pipeline.terminal import print_json_line

# What a build would import later: it is to be there before the first one is asked for.
NEEDED = (build_body, committing, convert, tables)
MOST_SAID = 4000  # characters of what a build said that go into its answer
ENDED_BY_SIGNAL = 128


def attend(build: click.Command, asked: TextIO, answers: TextIO) -> int:
    """Answer every line of `asked`, the JSON list of a build's options, by one line of JSON: exit_code and said.

    Returns:
        the exit code: 0 at the end of `asked`, or that of a build that a signal ended.
    """
    for line in asked:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = _run(build, line)
        print_json_line({"exit_code": code, "said": said.getvalue()[-MOST_SAID:]}, answers)
        if code > ENDED_BY_SIGNAL:
            return code
    return 0


def _run(build: click.Command, line: str) -> int:
    try:
        options = json.loads(line)
        build.main([str(option) for option in options], prog_name="pipeline build", standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception:  # a fault of this program, or a line that is no list: the next build is not to suffer
        traceback.print_exc()
        return 1
    return 0
