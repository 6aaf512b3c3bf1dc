"""The settings of a run: every number that it depends on, with its checks and its JSON form."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from training.errors import ConfigError

WEIGHTS = ("imagenet", "none")
HEADS = ("none", "gru", "transformer")
HEAD_SHARES = ("validation", "all")
PREFERRED_SIZES = {"efficientnet_b3": 380}


@dataclass(frozen=True)
class TrainConfig:
    """The settings that determine a run's outcome. The defaults fine-tune ImageNet weights on about 600,000 slices.

    A batch is the input of one forward pass, over all processes together; a step is one update of the weights, after
    `accumulation` batches.
    """

    # The model.
    model: str = "resnet50"  # a torchvision name, timm:NAME, or the user's own module:function
    weights: str = "imagenet"  # imagenet, none, or a file
    size_px: int = 224
    # Neighbouring slices on each side that the network also sees, and their windows: all, or comma-separated names.
    context: int = 0
    context_windows: str = "all"
    position: bool = True
    position_features: int = 64
    fusion_features: int = 512
    dropout: float = 0.3

    # A head over the slices of a series, on the slice model's frozen features; see docs/series.md. With a head, the
    # settings below are those of its training, and batches consist of series.
    head: str = "none"  # none, gru, transformer
    head_features: int = 128  # rounded up to a multiple of 8
    head_layers: int = 2
    # The weight of the head's correction: "validation" fits it per class, "all" always uses it in full. With few
    # validation patients, such as thirty, the fit is mostly noise.
    head_share: str = "validation"

    # Everything random is a hash of the seed, the epoch and the slice.
    seed: int = 0
    # Train, validation, test; None for those of the cache.
    split_fractions: tuple[float, float, float] | None = None

    # Four passes over 420,000 training slices are 13,000 steps: neighbouring slices are nearly identical, so more
    # passes over-fit before they help.
    epochs: int = 4
    # Fits ResNet-50 at 224 px in bf16 on a 16 GB GPU, and is large enough for the statistics of batch norm.
    batch_size: int = 128
    accumulation: int = 1
    # AdamW moves every weight by about the rate itself: 2e-4 is a tenth of the usual rate for training from scratch, so
    # that the ImageNet features are adapted, not destroyed.
    learning_rate: float = 2e-4
    # AdamW's steps are too large until its second moments have seen a few hundred batches.
    warmup_fraction: float = 0.05
    # The cosine ends at 1 % of the rate: the last steps average out noise; a rate of 0 would waste them.
    final_rate_fraction: float = 0.01
    # Decoupled decay shrinks weights by rate x decay per step: over the run, by 13,000 x 1e-4 x 0.05 = 6 %.
    weight_decay: float = 0.05
    # The usual pair; 0.999 averages over 1,000 steps, less than an epoch.
    beta1: float = 0.9
    beta2: float = 0.999
    # AdamW is insensitive to a constant factor, so clipping costs little, and a batch of outliers cannot undo an epoch.
    gradient_clip: float = 1.0
    # 0 turns it off. 0.999 averages the last 1,000 steps; since the cosine ends slowly, there is little to average.
    ema_decay: float = 0.0
    # Epochs with a frozen backbone, while the new head adapts. AdamW's warm-up has the same effect at a lower cost.
    frozen_epochs: int = 0
    # Epochs without a better validation log loss before the run stops; more than one, as a cosine improves at its end.
    patience_epochs: int = 3

    # Augmentation, per image. How a head lies in the scanner carries no information.
    flip_probability: float = 0.5
    # Heads are rarely turned by more; beyond this the fill in the corners becomes a feature.
    rotation_degrees: float = 15.0
    # A factor within 1 +- this: HU are calibrated, so it only needs to cover scanner and partial-volume differences.
    brightness: float = 0.1
    contrast: float = 0.1
    # Largest standard deviation, in units of [0, 1]: 0.02 of the brain window is 1.6 HU, below a real slice's noise.
    noise_sigma: float = 0.02
    # Beta(0.2, 0.2), the mixup paper's choice for ImageNet: 79 % of images keep at least 0.8 of one of their parents.
    mixup_alpha: float = 0.2
    # `default` uses the settings above except mixup_alpha; the user's own module:function replaces it.
    augment: str = "default"

    # The loss: `default` is the weighted binary cross-entropy; otherwise the user's own module:function.
    loss: str = "default"

    # How to compute. All of these change the last bits of the result.
    bf16: bool = True  # on a GPU only; a CPU computes in float32
    compile: bool = False  # takes minutes before the first step
    deterministic: bool = False  # bit-identical repeats on a GPU, at some cost in speed
    sync_batch_norm: bool = False  # for several GPUs with small batches on each

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Runtime:
    """Options that do not affect a run's outcome, and may change when it is resumed.

    Attributes:
        device: "auto", "cpu" or "cuda".
        input_threads: threads that read and decode slices; 0 to use only the main thread.
        batches_ahead: batches to prefetch.
        checkpoint_every: steps between checkpoints; 0 for only at the end of each epoch and on SIGTERM.
        keep_checkpoints: number of most recent checkpoints to keep.
        log_every: steps between reads of the loss, each of which waits for the GPU.
        loggers: trackers to log to: tensorboard, wandb, mlflow; csv, which is log.csv, is always written.
    """

    device: str = "auto"
    input_threads: int = 2
    batches_ahead: int = 4
    checkpoint_every: int = 0
    keep_checkpoints: int = 3
    log_every: int = 100
    loggers: tuple[str, ...] = ("tensorboard", "csv")


# Settings that apply to images, which a head over series does not see.
IMAGE_SETTINGS = frozenset(("augment", "mixup_alpha", "flip_probability", "rotation_degrees", "brightness", "contrast"))
IMAGE_SETTINGS |= {"noise_sigma", "compile", "sync_batch_norm"}
# Common names for some settings.
SHORT = {
    "lr": "learning_rate",
    "size": "size_px",
    "bs": "batch_size",
    "wd": "weight_decay",
    "warmup": "warmup_fraction",
    "patience": "patience_epochs",
    "ema": "ema_decay",
    "split": "split_fractions",
    "mixup": "mixup_alpha",
}
RANGES: dict[str, tuple[float, float]] = {
    "size_px": (8, 4096),
    "context": (0, 5),
    "head_features": (8, 4096),
    "head_layers": (1, 16),
    "position_features": (1, 65536),
    "fusion_features": (1, 65536),
    "dropout": (0, 0.99),
    "seed": (0, 2**63 - 1),
    "epochs": (1, 100_000),
    "batch_size": (1, 1 << 20),
    "accumulation": (1, 1 << 20),
    "learning_rate": (0, 100),
    "warmup_fraction": (0, 1),
    "final_rate_fraction": (0, 1),
    "weight_decay": (0, 100),
    "beta1": (0, 0.999999),
    "beta2": (0, 0.999999999),
    "gradient_clip": (1e-9, 1e9),
    "ema_decay": (0, 0.999999999),
    "frozen_epochs": (0, 100_000),
    "patience_epochs": (1, 100_000),
    "flip_probability": (0, 1),
    "rotation_degrees": (0, 180),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "noise_sigma": (0, 1),
    "mixup_alpha": (0, 100),
}


def check(config: TrainConfig) -> None:
    """Raise a ConfigError that names the first setting outside its range."""
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:  # false for NaN
            raise ConfigError(f"{name}: {value} is outside [{low:g}, {high:g}]")
    if config.head not in HEADS:
        raise ConfigError(f"head: {config.head!r} is not one of {', '.join(HEADS)}")
    if config.head_share not in HEAD_SHARES:
        raise ConfigError(f"head_share: {config.head_share!r} is not one of {', '.join(HEAD_SHARES)}")
    if config.split_fractions is not None:
        check_fractions(config.split_fractions)


def check_fractions(fractions: tuple[float, float, float]) -> None:
    """Raise a ConfigError unless these are fractions for train, validation and test; all but the first may be 0."""
    if not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-9 and fractions[0] > 0):  # false for NaN
        raise ConfigError(
            f"split_fractions: {tuple(fractions)} are not fractions for train, validation and test that add up to 1, "
            "the first above 0; examples: [0.7,0.15,0.15], or [0.8,0.2,0] without a test set"
        )


def from_mapping(values: Mapping[str, Any]) -> TrainConfig:
    """Build the settings of a run from names and values; settings not given keep their defaults.

    Raises:
        ConfigError: if a name is unknown (the nearest is suggested), or a value has the wrong type or is out of range.
    """
    types = get_type_hints(TrainConfig)
    for name in values:
        if name not in types:
            near = [SHORT[name]] if name in SHORT else difflib.get_close_matches(name, types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(types)}"
            raise ConfigError(f"{name}: unknown setting, {hint}")
    return TrainConfig(**{name: _typed(name, value, types[name]) for name, value in values.items()})


def new_settings(values: Mapping[str, Any]) -> TrainConfig:
    """Build the settings of a new run: as `from_mapping`, with the default image size of the model."""
    size_px = PREFERRED_SIZES.get(values.get("model", TrainConfig.model), TrainConfig.size_px)
    return from_mapping({"size_px": size_px} | dict(values))


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse `name=value` from the command line; the value is read as JSON, or else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text}: not a setting of the form name=value")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


def to_mapping(config: TrainConfig | Runtime) -> dict[str, Any]:
    """Return names and values that JSON can store; `from_mapping` turns them back into an equal TrainConfig."""
    return dataclasses.asdict(config)


def differences(a: TrainConfig, b: TrainConfig) -> list[str]:
    """List the settings in which two configurations differ, as `name: value of a there, value of b here`."""
    old, new = to_mapping(a), to_mapping(b)
    return [f"{name}: {old[name]} there, {new[name]} here" for name in old if old[name] != new[name]]


def _typed(name: str, value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is UnionType:
        return None if value is None else _typed(name, value, get_args(wanted)[0])
    if get_origin(wanted) is tuple:
        length = len(get_args(wanted))
        if not isinstance(value, list | tuple) or len(value) != length:
            raise ConfigError(f"{name}: {value!r} is not a list of {length} numbers")
        return tuple(_typed(name, item, float) for item in value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name}: {value!r} is not of type {wanted.__name__}")
    return value
