#!/usr/bin/env bash
# try_wheel.sh PYTHON WHEEL: install the wheel in a new environment outside the source tree, and try its commands.
set -euo pipefail
python=$1 wheel=$(realpath "$2")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH # use only what is installed in the environment
"$python" -m venv environment
environment/bin/python -m pip install --quiet --disable-pip-version-check "${wheel}[pipeline,codecs]"
environment/bin/pipeline phantom --out phantom --patients 2 --seed 0
environment/bin/pipeline build --src phantom/dicoms --labels phantom/labels.csv --dataset phantom --out cache.zarr \
    --size 64 --workers 0
environment/bin/pipeline verify cache.zarr
environment/bin/pipeline report cache.zarr --out report.html # checks that the wheel contains the templates
environment/bin/train --help >/dev/null
echo "$(basename "$wheel"): installs, and its commands work"
