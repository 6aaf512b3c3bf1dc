#!/usr/bin/env bash
# The whole way on synthetic studies: DICOM files, cache, model, scores, report, predictions; some minutes on two cores.
# Needs `pipeline` and `train`. Each command is printed before it runs: it is what you would type.
# DEMO_OUT is where it goes (demo), DEMO_SEED which patients and weights (0), DEMO_PATIENTS how many patients (160).
set -euo pipefail
cd "$(dirname "$0")/.."

out=${DEMO_OUT:-demo}
seed=${DEMO_SEED:-0}
# A fifth of them are to choose thresholds on, a fifth to test on: with fewer than 30 on a side, each kind of bleeding
# has some four patients there, and what is chosen on them is chance.
patients=${DEMO_PATIENTS:-160}
# A thread that waits for another spins for some microseconds and then sleeps. To sleep at once (OMP_WAIT_POLICY=passive)
# makes a step of so small a network half as long again; to spin on costs others who share the cores.
export GOMP_SPINCOUNT=20000
rm -rf "$out"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
    printf '  (%s s since the start)\n' "$SECONDS"
}

# Nine of ten patients bleed, so that each kind of bleeding has enough slices to learn from.
run pipeline phantom --out "$out" --patients "$patients" --bleeding 9 --seed "$seed"
run pipeline build --src "$out/dicoms" --labels "$out/labels.csv" --dataset phantom --out "$out/cache.zarr" --size 96
# One slice by itself: is there blood, and where.
run train run --cache "$out/cache.zarr" --out "$out/run" --preset demo --seed "$seed" --device cpu
# The slices of a series together: of which kind it is. A hundred series are few, hence small batches, at a higher rate,
# and fewer passes than the default's; and validation is too small to say by how much a head helps which class.
run train features --run "$out/run" --device cpu
run train series --run "$out/run" --out "$out/series" --epochs 15 --batch-size 4 --lr 2e-3 --set head_share=all --device cpu
run train predict --run "$out/series" --cache "$out/cache.zarr" --out "$out/submission.csv" --device cpu

python3 scripts/demo_figures.py "$out"

cat <<END

Where to look:
  $out/series/report.html     scores, true positives and mistakes with heat maps, whole series; open it in a browser
  $out/run/report.html        the same of the model that sees one slice, and its training
  $out/run, $out/series       settings, split, log, checkpoints, weights, thresholds, scores, predictions
  $out/cache.zarr             the cache: metadata.csv, rejects.csv and the images
  $out/submission.csv         a probability for each slice and class
END
