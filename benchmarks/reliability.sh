#!/usr/bin/env bash
# Kills, full disks, damaged and hostile files, and JSON that was edited by hand: what runs and files survive. Writes
# benchmarks/results/reliability.json; about half an hour on two cores. Full disks need Linux and root.
#
#     bash benchmarks/reliability.sh
#
# KILLS, TERMS, SEED, OUT and PYTHON can be set.
set -euo pipefail
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 "${PYTHON:-python3}" benchmarks/reliability.py --kills "${KILLS:-24}" --terms "${TERMS:-9}" \
    --seed "${SEED:-0}" --json "${OUT:-benchmarks/results/reliability.json}"
