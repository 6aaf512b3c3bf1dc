#!/usr/bin/env bash
# Measure the trainer on a GPU in six minutes: bash benchmarks/gpu.sh [--minutes 6] [--out gpu.json]; see docs/gpu.md.
# On a machine without access to a package index: WHEELS=folder of wheels, PYTHON=interpreter with torch.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    wheels=$(cd "$here" && cd "$WHEELS" && pwd)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1
"$python" -m benchmarks.gpu "$@"
