"""Presets of settings that go together: `train run --preset NAME`. What a command names itself wins over them."""

from typing import Any

# The defaults of config.py, where each number has its reason: ImageNet weights on some 600,000 slices.
FINETUNE: dict[str, Any] = {}

SCRATCH: dict[str, Any] = {
    "weights": "none",
    # Weights that know nothing need more passes than ImageNet's: three times as many.
    "epochs": 12,
    # AdamW from nothing takes about 1e-3; five times what would bend good features without breaking them.
    "learning_rate": 1e-3,
    # Fresh norms and second moments settle over some 1,500 of 39,000 steps; less, and the first epochs are lost.
    "warmup_fraction": 0.04,
    # The averaged weights of the last 1,000 steps are smoother than the last ones at such a rate.
    "ema_decay": 0.999,
    # A poor epoch in the middle of a high rate says nothing: only the end of the cosine does.
    "patience_epochs": 12,
}

DEMO: dict[str, Any] = {
    # An eighth of ResNet-18's work, made for small images: see training/model/small.py.
    "model": "small_resnet",
    "weights": "none",
    # 2.5 mm a pixel: a bleed just large enough for a label (30 mm2) has 5; at 64 px 2, and 128 px take twice the time.
    "size_px": 96,
    # What two cores do in some two and a half minutes with 4,500 slices.
    "epochs": 12,
    # Small, for steps count when there are a few thousand: after a minute of CPU time such batches, not turned, stood
    # at .26 of validation loss, batches of 32 (at 2e-3 and 7e-4, turned by up to 10 degrees) at .30.
    "batch_size": 16,
    # Ten times the rate that fine-tunes: on thirty patients 2e-3 ended at .27 of validation loss, 1e-3 at .30.
    "learning_rate": 2e-3,
    "warmup_fraction": 0.1,
    # The second moments of the last 100 steps: what a gradient was in the first pass says nothing in the fifth.
    "beta2": 0.99,
    # All epochs are run, for the best one is the last or the one before it.
    "patience_epochs": 12,
    # 192 features need no wider head; the position is one number.
    "fusion_features": 128,
    "position_features": 16,
    # 200,000 weights in a few passes hardly over-fit: dropout and mixup would only slow them.
    "dropout": 0.1,
    "mixup_alpha": 0.0,
    # The phantom's scanner is calibrated and its noise is in the slices: nothing to cover, and time saved.
    "noise_sigma": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    # Its heads are turned by some 4 degrees. Without turning them further, training lay .03 below validation after six
    # passes of a hundred patients.
    "rotation_degrees": 10.0,
    # A third of a hundred patients to choose thresholds on, as many to test on: with thresholds for F1 chosen on 30
    # patients the mean F1 of others was .018 above that of 20.
    "split_fractions": (0.6, 0.2, 0.2),
}

PRESETS: dict[str, dict[str, Any]] = {"demo": DEMO, "finetune": FINETUNE, "scratch": SCRATCH}
