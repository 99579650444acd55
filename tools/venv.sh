#!/bin/sh
# Make the virtual environment $1 with the best Python there is, unless it works already.
set -eu
venv=$1
fits='import sys; sys.exit(not sys.version_info >= (3, 11))'

if "$venv/bin/python" -c "$fits" 2>/dev/null && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

found=
for python in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python python3.14; do
    if "$python" -c "$fits" 2>/dev/null; then
        found=$python
        "$python" -c 'import venv, ensurepip' 2>/dev/null && exec "$python" -m venv --clear "$venv"
    fi
done

if [ -n "$found" ]; then
    echo "$found has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2
else
    echo "Mirrorflow needs Python 3.11 or newer, and found none. On Debian and Ubuntu: apt-get install python3 python3-venv;" \
        "elsewhere see https://www.python.org/downloads/. Or name one: make run PYTHON=/path/to/python3" >&2
fi
exit 1
