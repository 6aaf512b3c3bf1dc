#!/usr/bin/env bash
# The whole way on synthetic studies: DICOM files, cache, model, scores, report, predictions; some minutes on two cores.
# Needs `pipeline` and `train`. Each command is printed before it runs: it is what you would type.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${DEMO_OUT:-demo}
seed=${DEMO_SEED:-0}
# A thread that waits for another must not keep a core busy: on two shared cores that costs several times the work.
export OMP_WAIT_POLICY=passive
rm -rf "$out"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
    printf '  (%s s since the start)\n' "$SECONDS"
}

# Nine of ten patients bleed, so that each kind of bleeding has enough slices to learn from.
run pipeline phantom --out "$out" --patients 150 --bleeding 9 --seed "$seed"
run pipeline build --src "$out/dicoms" --labels "$out/labels.csv" --dataset phantom --out "$out/cache.zarr" --size 96
run train run --cache "$out/cache.zarr" --out "$out/run" --preset demo --seed "$seed" --device cpu
run train predict --run "$out/run" --cache "$out/cache.zarr" --out "$out/submission.csv"

python3 - "$out/run" <<'END'
import json
import pathlib
import sys

run = pathlib.Path(sys.argv[1])
scores = json.loads((run / "scores_test.json").read_text())
of_any = scores["classes"]["any"]
print("\nOn patients that the model has not seen:")
print(f"  ROC AUC of any            {of_any['roc_auc']:.3f}   (0.5 is chance)")
print(f"  average precision of any  {of_any['average_precision']:.3f}   (chance: {of_any['positives'] / of_any['n']:.3f})")
print(f"  weighted log loss         {scores['weighted_log_loss']:.3f}")
print(f"  slices                    {of_any['n']:,}, with blood {of_any['positives']:,}")
END

cat <<END

Where to look:
  $out/run/report.html        scores, mistakes with heat maps, training; open it in a browser
  $out/run                    settings, split, log, checkpoints, weights, scores_test.json, predictions_test.csv
  $out/cache.zarr             the cache: metadata.csv, rejects.csv and the images
  $out/submission.csv         a probability for each slice and class
END
