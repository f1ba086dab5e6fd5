#!/usr/bin/env bash
# What decides whether pretraining helps? One thing changed at a time against the studies on OpenKBP, with 6 labelled
# cases: four times the steps, masks of smaller cells, the encoder alone instead of encoder and decoder. SparK and S3D are
# otherwise as in the study of six methods, MAE as in that of AdamW. Plans and cases are those of study.sh, run first.
#
#     bash benchmarks/study_factors.sh
#
# Some of the weights fine-tuned with a tenth of the learning rate, against the same training from scratch:
#
#     NAME=gently TRAINER=nnUNetTrainerAdam1en3 KEEP=MAE_8000_steps bash benchmarks/study_factors.sh
#
# WORK, SEEDS, JOBS (also of pretraining) and PYTHON can be set; KEEP chooses among the weights. What is done already is
# not done again.
set -euo pipefail
# Pretrainings run in the background: none of them may outlive this.
trap 'kill $(jobs -rp) 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
JOBS=${JOBS:-2}
if ((JOBS < 1)); then echo "JOBS must be at least 1." >&2; exit 2; fi
WORK=${WORK:-$PWD/study_work}/221
PLANS=nnUNetPlans_5mm
"$PYTHON" benchmarks/small_plans.py -d 221 -p "$PLANS" -patch_size 32 32 32 -batch_size 2 -narrower 4 -convs 1 -stages 4

all=" SparK_8000_steps MAE_8000_steps S3D_encoder MAE_encoder MAE_cell_8 SparK_cell_8 "
chosen=" ${KEEP:-$all} "
for name in $chosen; do
    if [[ $all != *" $name "* ]]; then
        echo "KEEP names $name, and there are only$all" >&2
        exit 2
    fi
done
weights=()

# Name of the weights, method, epochs of 50 steps, more flags; at most JOBS at once.
pretrain() {
    local folder=$WORK/factors/pretrained/$1 method=$2 epochs=$3
    if [[ $chosen != *" $1 "* ]]; then return; fi
    weights+=("$folder/checkpoint_final.pth")
    if [ -f "$folder/checkpoint_final.pth" ]; then return; fi
    local resume=()
    if [ -f "$folder/checkpoint_latest.ckpt" ]; then resume=(--c); fi
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do sleep 1; done
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} nnUNetv2_pretrain 221 3d_fullres 0 -m "$method" -p "${PLANS}_small" \
        -epochs "$epochs" -iters 50 -val_iters 5 -batch_size 2 -num_workers 0 -device cpu "${@:4}" \
        -o "$folder" "${resume[@]}" &
}

adamw=(-optimizer adamw -lr 0.001)
pretrain SparK_8000_steps SparK 160
pretrain MAE_8000_steps MAE 160 "${adamw[@]}"
pretrain S3D_encoder S3D 40 -export encoder
pretrain MAE_encoder MAE 40 "${adamw[@]}" -export encoder
pretrain MAE_cell_8 MAE 40 "${adamw[@]}" -mask_cell 8 8 8
pretrain SparK_cell_8 SparK 40 -mask_cell 8 8 8
wait
for file in "${weights[@]}"; do
    if [ ! -f "$file" ]; then
        echo "Pretraining has failed, there is no $file: see the log beside it." >&2
        exit 1
    fi
done

STUDY=$WORK/${NAME:-factors}/study
resume=()
if [ -f "$STUDY/study.json" ]; then resume=(--c); fi
nnUNetv2_pretrain_study -d 221 -c 3d_fullres -w "${weights[@]}" -cases 6 -seeds "${SEEDS:-5}" -folds 0 \
    -tr "${TRAINER:-nnUNetTrainerAdam}" -scratch_tr nnUNetTrainerAdam -epochs 20 -iters 50 -val_iters 2 -device cpu \
    --no_mirroring -jobs "$JOBS" -o "$STUDY" "${resume[@]}"
