#!/usr/bin/env bash
# make_venv.sh PYTHON FOLDER: create an environment where Debian or Ubuntu has left out part of venv.
set -euo pipefail
python=$1 folder=$2
package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
elif ! "$python" -c 'import ensurepip' 2>/dev/null; then
    echo "error: $python cannot make environments; run: sudo apt-get install $package" >&2
    exit 1
fi
rm -rf "$folder"
exec "$python" -m venv "$folder"
