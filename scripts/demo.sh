#!/usr/bin/env bash
# The whole workflow on synthetic studies: DICOM files, cache, model, scores, report, predictions; 5 minutes on 2 cores.
# Needs `pipeline` and `train`. Each command is printed as you would type it before it runs.
# DEMO_OUT: output folder (demo); DEMO_SEED: seed of patients and weights (0); DEMO_PATIENTS: number of patients (160).
set -euo pipefail
cd "$(dirname "$0")/.."

out=${DEMO_OUT:-demo}
seed=${DEMO_SEED:-0}
# A fifth of them form the validation set, a fifth the test set. With fewer than 30 in each, only about four would have
# each kind of bleeding, and the thresholds would be governed by chance.
patients=${DEMO_PATIENTS:-160}
# A waiting thread spins for some microseconds and then sleeps. Sleeping at once (OMP_WAIT_POLICY=passive) makes a step
# of such a small network 50 % longer; spinning longer takes time from other processes.
export GOMP_SPINCOUNT=20000
rm -rf "$out"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
    printf '  (%s s since the start)\n' "$SECONDS"
}

# Nine of ten patients bleed, so that there are enough slices of each kind of bleeding to learn from.
run pipeline phantom --out "$out" --patients "$patients" --bleeding 9 --seed "$seed"
run pipeline build --src "$out/dicoms" --labels "$out/labels.csv" --dataset phantom --out "$out/cache.zarr" --size 96
# The slice model: is there blood in a slice, and where.
run train run --cache "$out/cache.zarr" --out "$out/run" --preset demo --seed "$seed" --device cpu
# A head over the slices of a series: of which kind the blood is. A hundred series are few, hence small batches, a
# higher rate and fewer epochs than the defaults; and validation is too small to choose how much it helps each class.
run train features --run "$out/run" --device cpu
run train series --run "$out/run" --out "$out/series" --epochs 15 --batch-size 4 --lr 2e-3 --set head_share=all --device cpu
run train predict --run "$out/series" --cache "$out/cache.zarr" --out "$out/submission.csv" --device cpu

python3 scripts/demo_figures.py "$out"

cat <<END

Where to look:
  $out/series/report.html     scores, true positives and mistakes with heat maps, series; open it in a browser
  $out/run/report.html        the same for the model of single slices, and its training
  $out/run, $out/series       settings, split, log, checkpoints, weights, thresholds, scores, predictions
  $out/cache.zarr             the cache: metadata.csv, rejects.csv and the images
  $out/submission.csv         a probability for each slice and class
END
