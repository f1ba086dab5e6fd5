#!/usr/bin/env bash
# Does pretraining help? Every method pretrained on one dataset, its validation cases left out, then the study. nnU-Net's
# planned network cut down for hours on a CPU: at most four stages, a quarter of the width, one convolution at full
# resolution, a smaller patch. Such a network is stuck at background for hundreds of steps of SGD, so AdamW trains it.
#
#     bash benchmarks/study.sh 4 "32 40 32" "4 8 20"
#
# Head and neck at 5 mm, where a patch of 16 cm has few voxels:
#
#     nnUNetv2_plan_experiment -d 221 -overwrite_target_spacing 5 5 5 -overwrite_plans_name nnUNetPlans_5mm
#     nnUNetv2_preprocess -d 221 -plans_name nnUNetPlans_5mm -c 3d_fullres
#     nnUNetv2_preprocess_unlabeled -i raw -d 221 -p nnUNetPlans_5mm -c 3d_fullres
#     PLANS=nnUNetPlans_5mm TUNING=20 bash benchmarks/study.sh 221 "32 32 32" "3 6 12"
#
# SimMIM needs a transformer, which is a study of its own:
#
#     NAME=tokens METHODS="MAE SimMIM" NETWORK=PrimusS SETTINGS="width=132 depth=4 heads=2" TRAINER=PrimusTrainer_ft_60ep \
#         bash benchmarks/study.sh 4 "32 40 32" "4 8 20"
#
# The same methods pretrained with AdamW, which leaves a plateau sooner than SGD, on one amount of data:
#
#     NAME=adamw METHODS="MAE S3D ModelsGenesis" FLAGS="-optimizer adamw -lr 0.001" PLANS=nnUNetPlans_5mm TUNING=20 \
#         bash benchmarks/study.sh 221 "32 32 32" "6"
#
# Dataset, patch, numbers of labelled cases. WORK, PLANS, EPOCHS and ITERS (of pretraining), TUNING (epochs of 50 steps of
# fine-tuning, unless the trainer's name says how many), FLAGS (more flags of pretraining), SEEDS, JOBS and PYTHON can be
# set. What is done already is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -n ${FLAGS:-} && -z ${NAME:-} ]]; then
    echo "Give other weights another NAME: without one, FLAGS would be ignored where the weights are there already." >&2
    exit 2
fi
DATASET=$1 PATCH=$2 CASES=$3
PYTHON=${PYTHON:-python3}
WORK=${WORK:-$PWD/study_work}/$DATASET/${NAME:-unet}
PLANS=${PLANS:-nnUNetPlans}
NETWORK=${NETWORK:-plans}
TRAINER=${TRAINER:-nnUNetTrainerAdam}
METHODS=${METHODS:-AnatoMask SparK MAE S3D ModelsGenesis VolumeFusion}
# shellcheck disable=SC2206 # lists
settings=(${SETTINGS:+-network_settings $SETTINGS})
length=()
if [[ ! $TRAINER =~ _[0-9]+ep ]]; then length=(-epochs "${TUNING:-4}"); fi
# shellcheck disable=SC2086 # lists
"$PYTHON" benchmarks/small_plans.py -d "$DATASET" -p "$PLANS" -patch_size $PATCH -batch_size 2 -narrower 4 -convs 1 -stages 4
weights=()
for method in $METHODS; do
    folder=$WORK/pretrained/$method
    if [ ! -f "$folder/checkpoint_final.pth" ]; then
        resume=()
        if [ -f "$folder/checkpoint_latest.ckpt" ]; then resume=(--c); fi
        # shellcheck disable=SC2086 # FLAGS is a list
        nnUNetv2_pretrain "$DATASET" 3d_fullres 0 -m "$method" -p "${PLANS}_small" -network "$NETWORK" "${settings[@]}" \
            -epochs "${EPOCHS:-40}" -iters "${ITERS:-50}" -val_iters 5 \
            -batch_size 2 -num_workers 0 -device cpu ${FLAGS:-} -o "$folder" "${resume[@]}"
    fi
    weights+=("$folder/checkpoint_final.pth")
done
if [ -n "${PRETRAIN_ONLY:-}" ]; then exit; fi
resume=()
if [ -f "$WORK/study/study.json" ]; then resume=(--c); fi
# shellcheck disable=SC2086 # lists
nnUNetv2_pretrain_study -d "$DATASET" -c 3d_fullres -w "${weights[@]}" -cases $CASES -seeds "${SEEDS:-5}" -folds 0 \
    -tr "$TRAINER" "${length[@]}" -iters 50 -val_iters 2 -device cpu --no_mirroring -jobs "${JOBS:-2}" -o "$WORK/study" \
    "${resume[@]}"
