#!/usr/bin/env bash
# Writes requirements.lock: pyproject.toml's ranges, with the extras that need no compiler, resolved in a fresh environment.
# torch is left out: it is installed first, as the build that suits the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
torch="${TORCH:?name the torch to resolve against, as make lock does}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

echo "resolving in a fresh environment (a few minutes)"
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip -qq --disable-pip-version-check --no-input)
"${pip[@]}" install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
"${pip[@]}" install ".[search,dev]"

{
    echo "# The libraries that llmtune is tried with. Written by \`make lock\` from pyproject.toml; don't edit."
    echo "# $("$python" --version), $torch. torch itself is installed first (see the Makefile), so it isn't listed,"
    echo "# and neither are the libraries that only some of its builds bring."
    "${pip[@]}" freeze | grep --invert-match --ignore-case --extended-regexp \
        '^(torch|triton|llmtune|setuptools|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)( @|==)'
} >"$work/requirements.lock"
mv "$work/requirements.lock" requirements.lock
echo "requirements.lock: $(grep --count == requirements.lock) libraries"
