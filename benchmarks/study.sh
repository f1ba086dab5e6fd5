#!/usr/bin/env bash
# Does pretraining help? Every method pretrained on one dataset, its validation cases left out, then the study. A small
# residual U-Net (an eighth of the planned patch or so, a quarter of the width), made for hours on a CPU.
#
#     bash benchmarks/study.sh 4 "32 40 32" "4 8 20"
#     bash benchmarks/study.sh 221 "32 64 64" "3 6 12"
#
# SimMIM needs a transformer, which is a study of its own:
#
#     NAME=tokens METHODS="SimMIM MAE" NETWORK=PrimusS SETTINGS="width=132 depth=4 heads=2" TRAINER=PrimusTrainer_ft \
#         bash benchmarks/study.sh 4 "32 40 32" "4 8 20"
#
# Dataset, patch, numbers of labelled cases. WORK, EPOCHS, ITERS (of pretraining), TUNING (epochs of fine-tuning, of 50
# steps), SEEDS, JOBS and PYTHON can be set. What is done already is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
DATASET=$1 PATCH=$2 CASES=$3
PYTHON=${PYTHON:-python3}
WORK=${WORK:-$PWD/study_work}/$DATASET/${NAME:-unet}
NETWORK=${NETWORK:-ResEncM}
SETTINGS=${SETTINGS:-width=8 widest=64 depth=1}
TRAINER=${TRAINER:-ResEncTrainer_ft}
METHODS=${METHODS:-AnatoMask SparK MAE S3D ModelsGenesis VolumeFusion}
# shellcheck disable=SC2086 # lists
"$PYTHON" benchmarks/small_plans.py -d "$DATASET" -patch_size $PATCH -batch_size 2
weights=()
for method in $METHODS; do
    folder=$WORK/pretrained/$method
    if [ ! -f "$folder/checkpoint_final.pth" ]; then
        resume=()
        if [ -f "$folder/checkpoint_latest.ckpt" ]; then resume=(--c); fi
        # shellcheck disable=SC2086
        nnUNetv2_pretrain "$DATASET" 3d_fullres 0 -m "$method" -p nnUNetPlans_small -network "$NETWORK" \
            -network_settings $SETTINGS -epochs "${EPOCHS:-40}" -iters "${ITERS:-50}" -val_iters 5 \
            -batch_size 2 -num_workers 0 -device cpu -o "$folder" "${resume[@]}"
    fi
    weights+=("$folder/checkpoint_final.pth")
done
if [ -n "${PRETRAIN_ONLY:-}" ]; then exit; fi
resume=()
if [ -f "$WORK/study/study.json" ]; then resume=(--c); fi
# shellcheck disable=SC2086
nnUNetv2_pretrain_study -d "$DATASET" -c 3d_fullres -w "${weights[@]}" -cases $CASES -seeds "${SEEDS:-5}" -folds 0 \
    -tr "${TRAINER}_${TUNING:-6}ep" -iters 50 -device cpu --no_mirroring -jobs "${JOBS:-2}" -o "$WORK/study" "${resume[@]}"
