#!/usr/bin/env bash
# The whole way on a synthetic study set: DICOM files, cache, model, scores, predictions. Needs `pipeline` and `train`.
set -euo pipefail
cd "$(dirname "$0")/.."

out=demo
# A thread that waits for another must not keep a core busy: on two shared cores that costs several times the work.
export OMP_WAIT_POLICY=passive
rm -rf "$out"
step() { printf '\n== %s\n' "$*"; }

step "synthetic head CT studies"
pipeline phantom --out $out --patients 40 --seed 0

step "cache"
pipeline build --src $out/dicoms --labels $out/labels.csv --dataset phantom --out $out/cache.zarr --size 96

step "training"
# These shares and this seed put every finding on every side of the split.
train run --cache $out/cache.zarr --out $out/run --size 96 --model resnet18 --weights none \
    --epochs 3 --batch-size 32 --lr 1e-3 --set split_fractions='[0.6, 0.2, 0.2]' --seed 2 --device cpu

step "test-time augmentation: thresholds from validation, scores on test, and what it changes"
train evaluate --run $out/run --split validation --tta
train evaluate --run $out/run --split test --tta
train compare $out/run --tta

step "report"
train report --run $out/run

step "prediction"
train predict --run $out/run --cache $out/cache.zarr --out $out/submission.csv

cat <<END

The demo is done:
  cache       $out/cache.zarr     (metadata.csv, rejects.csv and the images)
  run         $out/run            (settings, split, log, checkpoints, weights)
  scores      $out/run/scores_validation.json, $out/run/scores_test.json
  predictions $out/run/predictions_test.csv, $out/submission.csv
  report      $out/run/report.html     open it in a browser
END
