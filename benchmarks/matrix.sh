#!/usr/bin/env bash
# Every method on every kind of network, pretrained and fine-tuned with the real commands: Hippocampus and OpenKBP, which
# have to be preprocessed (nnUNetv2_plan_and_preprocess -d 4 221 -c 3d_fullres). About an hour on one core.
#
#     bash benchmarks/matrix.sh
#
# DATASETS, WORK, OUT and PYTHON can be set. An interrupted run goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
# shellcheck disable=SC2086 # a list of numbers
"$PYTHON" benchmarks/matrix.py --datasets ${DATASETS:-4 221} --work "${WORK:-$PWD/matrix_work}" \
    --json "${OUT:-benchmarks/results/cpu_matrix.json}"
