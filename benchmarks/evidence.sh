#!/usr/bin/env bash
# The evidence study on two CPU cores: hours. What is done already is not done again, so stop it and start it as you like.
#
#     bash benchmarks/evidence.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/evidence.py benchmarks/evidence.toml --work "$1" --jobs "${JOBS:-2}" "${@:2}"
