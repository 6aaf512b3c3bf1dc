"""Groups of settings for `train run --preset NAME`; options given on the command line override them."""

from typing import Any

# The defaults in config.py, which gives the reason for each: ImageNet weights on about 600,000 slices.
FINETUNE: dict[str, Any] = {}

SCRATCH: dict[str, Any] = {
    "weights": "none",
    # Random weights need three times as many passes as ImageNet weights.
    "epochs": 12,
    # The usual rate of AdamW from scratch; five times the rate that adapts good features without destroying them.
    "learning_rate": 1e-3,
    # New norms and second moments need about 1,500 of 39,000 steps to stabilise, or the first epochs are lost.
    "warmup_fraction": 0.04,
    # At this rate, the average over the last 1,000 steps is smoother than the last weights.
    "ema_decay": 0.999,
    # A poor epoch while the rate is high means nothing: only the end of the cosine counts.
    "patience_epochs": 12,
}

DEMO: dict[str, Any] = {
    # An eighth of ResNet-18's operations, designed for small images: see training/model/small.py.
    "model": "small_resnet",
    "weights": "none",
    # 2.5 mm per pixel: a bleed just large enough for a label (30 mm2) covers 5 pixels. At 64 px it would cover 2, and
    # 128 px would take twice the time.
    "size_px": 96,
    # About two and a half minutes on two cores with 3,500 slices.
    "epochs": 12,
    # Small, since with only a few thousand steps their number matters: after a minute of CPU time the validation loss
    # was .26 with this batch size and no rotation, and .30 with 32 (at 2e-3 and 7e-4, rotating by up to 10 degrees).
    "batch_size": 16,
    # Ten times the fine-tuning rate: on thirty patients 2e-3 reached a validation loss of .27, 1e-3 one of .30.
    "learning_rate": 2e-3,
    "warmup_fraction": 0.1,
    # Second moments over the last 100 steps: gradients of the first pass are irrelevant in the fifth.
    "beta2": 0.99,
    # Run all epochs, since the best is the last or the one before it.
    "patience_epochs": 12,
    # 192 features do not need a wider head; the position is one number.
    "fusion_features": 128,
    "position_features": 16,
    # 200,000 weights hardly over-fit in a few passes: dropout and mixup would only slow down training.
    "dropout": 0.1,
    "mixup_alpha": 0.0,
    # The phantom's scanner is calibrated and its noise is in the slices: there is nothing to cover, and it saves time.
    "noise_sigma": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    # The phantom's heads are turned by about 4 degrees. Without further rotation, the training loss was .03 below the
    # validation loss after six passes over a hundred patients.
    "rotation_degrees": 10.0,
    # Larger held-out sets: choosing F1 thresholds on 30 patients instead of 20 gave other patients a mean F1 that was
    # .018 higher.
    "split_fractions": (0.6, 0.2, 0.2),
}

PRESETS: dict[str, dict[str, Any]] = {"demo": DEMO, "finetune": FINETUNE, "scratch": SCRATCH}
