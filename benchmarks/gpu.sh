#!/usr/bin/env bash
# The complete table on a CUDA GPU, with nothing but PyTorch, Lightning and NumPy installed (rows of ResEncL need
# dynamic-network-architectures, of spconv that library; they are left out where it is missing). Writes
# benchmarks/results/<gpu>.json.
#
#     bash benchmarks/gpu.sh
#
# DEVICE, NETWORKS, PATCHES (with commas), PRECISIONS (the last one is that of the best rows), BATCH, REPEAT and OUT can be
# set, for a part of the table or a trial on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-python3}
BATCH=${BATCH:-2}
REPEAT=${REPEAT:-5}
PATCHES=${PATCHES:-112,112,128 160,160,160}
PRECISIONS=${PRECISIONS:-32 bf16}
BEST=${PRECISIONS##* }
BACKENDS="masked blocks"
has() { "$PYTHON" -c "import $1" 2>/dev/null; }
if [ -z "${NETWORKS:-}" ]; then
    NETWORKS="STUNet_base STUNet_large"
    if has dynamic_network_architectures; then NETWORKS="$NETWORKS ResEncL"; else echo "ResEncL left out: dynamic-network-architectures is missing"; fi
fi
if has spconv.pytorch && [ "$DEVICE" = cuda ]; then BACKENDS="$BACKENDS spconv"; else echo "spconv left out"; fi
PARTS=$(mktemp -d)
trap 'rm -rf "$PARTS"' EXIT

# A row that fails, for want of memory say, is reported and left out; the table goes on.
run() {
    local name=$1
    shift
    echo "== $*"
    "$PYTHON" "$@" --device "$DEVICE" --json "$PARTS/$name.json" || echo "-- failed: $*"
}

for network in $NETWORKS; do
    stages="--stages 5"
    if [ "$network" = ResEncL ]; then stages="--stages 6"; fi
    for patch in $PATCHES; do
        size=${patch//,/ }
        for precision in $PRECISIONS; do
            common="--network $network $stages --patch $size --batch $BATCH --precision $precision"
            run "encoder-$network-$patch-$precision" benchmarks/sparse_encoder.py $common \
                --mask_ratio 0.6 0.75 --backends $BACKENDS --repeat "$REPEAT"
        done
    done
    size=${PATCHES%% *}
    size=${size//,/ }
    common="--network $network $stages --patch $size --batch $BATCH --steps $REPEAT --against masked --against_decoder spark --against_teacher full"
    for precision in $PRECISIONS; do
        run "step-$network-$precision-auto-slim" benchmarks/step.py $common --precision $precision --decoder slim
        run "step-$network-$precision-auto-spark" benchmarks/step.py $common --precision $precision --decoder spark --teacher full
    done
    # Both sides of these differ from float32 masked + spark in everything, which is what users gain.
    run "step-$network-best" benchmarks/step.py $common --precision $BEST --against_precision 32 --decoder slim
    run "step-$network-best-channels-last" benchmarks/step.py $common --precision $BEST --against_precision 32 \
        --decoder slim --memory_format channels_last_3d
    run "step-$network-best-compile" benchmarks/step.py $common --precision $BEST --against_precision 32 \
        --decoder slim --compile
done

"$PYTHON" - "$PARTS" "${OUT:-}" <<'PYTHON'
import json, pathlib, sys

parts = {f.stem: json.loads(f.read_text()) for f in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
if not parts:
    sys.exit("no row succeeded")
device = next(iter(parts.values()))["machine"]["device"]
name = "".join(c if c.isalnum() else "_" for c in device.lower())
target = pathlib.Path(sys.argv[2] or f"benchmarks/results/{name}.json")
target.write_text(json.dumps(parts, indent=1) + "\n")
for key, part in parts.items():
    for row in part.get("rows", []):
        print(f"{key:45} {row['mask_ratio']:4} {row['backend']:7} {row['speedup']:5.2f}x memory {row['memory_ratio']:4.2f}")
    if "ratio" in part:
        print(f"{key:45} step {part['ours']['step_seconds']:.3f} s, ratio {part['ratio']:.2f}")
print(f"written to {target}")
PYTHON
