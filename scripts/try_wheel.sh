#!/usr/bin/env bash
# try_wheel.sh PYTHON WHEEL: the wheel alone, with what it asks for, in a fresh environment outside the source tree.
set -euo pipefail
python=$1 wheel=$(realpath "$2")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH # only what is installed here counts
"$python" -m venv environment
environment/bin/python -m pip install --quiet --disable-pip-version-check "${wheel}[pipeline,codecs]"
environment/bin/pipeline phantom --out phantom --patients 2 --seed 0
environment/bin/pipeline build --src phantom/dicoms --labels phantom/labels.csv --dataset phantom --out cache.zarr \
    --size 64 --workers 0
environment/bin/pipeline verify cache.zarr
environment/bin/pipeline report cache.zarr --out report.html # its templates travel in the wheel
environment/bin/train --help >/dev/null
echo "$(basename "$wheel"): installs alone, and its commands work"
