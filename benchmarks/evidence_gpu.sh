#!/usr/bin/env bash
# The evidence study on a GPU that is lent for minutes at a time: each call goes on where the last one was stopped, ends
# by itself after 9 minutes, and says whether everything is done (0), time was up (124), or something failed (1).
#
#     while bash benchmarks/evidence_gpu.sh FOLDER; [ $? = 124 ]; do sleep 60; done
set -uo pipefail
cd "$(dirname "$0")/.."
timeout --signal=TERM --kill-after=30 "${SECONDS_AT_ONCE:-540}" "${PYTHON:-python3}" benchmarks/evidence.py \
    benchmarks/evidence_gpu.toml --work "$1" --jobs 1 "${@:2}"
