"""Test the environment of the Makefile's commands."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("given", "seen"), [({}, "1"), ({"UV_SYSTEM_CERTS": "0"}, "0")])
def test_uv_trusts_the_certificates_of_the_system(given, seen):
    """Networks that inspect TLS use their own certificate, which is not in uv's bundled list."""
    show = ["make", "--silent", "--eval", "show: ; @echo $$UV_SYSTEM_CERTS", "show"]
    environment = {"PATH": "/usr/bin:/bin", **given}
    said = subprocess.run(show, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == seen
