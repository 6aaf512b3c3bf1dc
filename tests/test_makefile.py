"""The Makefile: what its commands see of the machine they run on."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("given", "seen"), [({}, "1"), ({"UV_SYSTEM_CERTS": "0"}, "0")])
def test_uv_trusts_the_certificates_that_the_machine_trusts(given, seen):
    """A network that inspects TLS signs with a certificate of its own, which uv's own list does not have."""
    show = ["make", "--silent", "--eval", "show: ; @echo $$UV_SYSTEM_CERTS", "show"]
    environment = {"PATH": "/usr/bin:/bin", **given}
    said = subprocess.run(show, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == seen
