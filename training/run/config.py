"""Every number that a run depends on, and how it is written down and read back."""

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
    """What decides a run's outcome. The defaults fine-tune ImageNet weights on some 600,000 slices.

    A batch is what one forward pass takes, over all processes together; a step is one update of the weights, after
    `accumulation` batches. Epochs may be fractions only in the warm-up.
    """

    # The model.
    model: str = "resnet50"  # torchvision's name, timm:NAME, or module:function of the user's own
    weights: str = "imagenet"  # imagenet, none, or a file
    size_px: int = 224
    # Slices on each side that the network sees too, and of which windows: all, or names with commas between.
    context: int = 0
    context_windows: str = "all"
    position: bool = True
    position_features: int = 64
    fusion_features: int = 512
    dropout: float = 0.3

    # A head over the slices of a series, on the slice model's frozen features; see docs/series.md. With one, what
    # follows is how the head is trained, and batches are of series.
    head: str = "none"  # none, gru, transformer
    head_features: int = 128  # rounded up to a multiple of 8
    head_layers: int = 2
    # How much of the head's correction counts: validation says it for each class, or all does; with few patients in
    # validation, thirty say, what they tell is mostly chance.
    head_share: str = "validation"

    # The order of things. Everything random is a hash of this, the epoch and the slice.
    seed: int = 0
    # Train, validation, test; as the cache states them, unless given.
    split_fractions: tuple[float, float, float] | None = None

    # Four passes over 420,000 training slices are 13,000 steps: neighbouring slices are near copies, so more passes
    # over-fit before they help.
    epochs: int = 4
    # Fits ResNet-50 at 224 px in bf16 on a 16 GB GPU, and is large enough for the statistics of batch norm.
    batch_size: int = 128
    accumulation: int = 1
    # AdamW moves every weight by about the rate itself: 2e-4 is a tenth of what training from nothing takes, so that
    # the ImageNet features are bent and not broken.
    learning_rate: float = 2e-4
    # Until AdamW's second moments have seen a few hundred batches its steps are too long.
    warmup_fraction: float = 0.05
    # The cosine ends at a hundredth: the last steps average noise out, a rate of 0 would waste them.
    final_rate_fraction: float = 0.01
    # Decoupled decay pulls by rate x decay a step: over the run, 13,000 x 1e-4 x 0.05 = 6 % of each weight.
    weight_decay: float = 0.05
    # 0.999 remembers 1,000 steps, shorter than an epoch; the usual pair.
    beta1: float = 0.9
    beta2: float = 0.999
    # AdamW forgives a constant factor, so clipping costs little; a batch of outliers must not undo an epoch.
    gradient_clip: float = 1.0
    # 0 turns it off. 0.999 averages the last 1,000 steps; with the cosine's slow end there is little left to average.
    ema_decay: float = 0.0
    # Epochs with the backbone held, while the new head finds its feet. AdamW's warm-up does the same more cheaply.
    frozen_epochs: int = 0
    # Epochs without a better validation log loss before the run stops; a cosine needs its end, so not at the first.
    patience_epochs: int = 3

    # Augmentation, by image. A head lies in the scanner as it happens to lie.
    flip_probability: float = 0.5
    # Heads are rarely turned by more; beyond it the corners' fill becomes a feature.
    rotation_degrees: float = 15.0
    # A factor within 1 +- this: HU are calibrated, so only scanner and partial-volume differences are to be covered.
    brightness: float = 0.1
    contrast: float = 0.1
    # Largest standard deviation, in units of [0, 1]: 0.02 of the brain window is 1.6 HU, below a real slice's noise.
    noise_sigma: float = 0.02
    # Beta(0.2, 0.2), the mixup paper's choice for ImageNet: 79 images in 100 keep 0.8 or more of one of their parents.
    mixup_alpha: float = 0.2
    # The settings above but mixup_alpha are those of `default`; module:function of the user's own takes its place.
    augment: str = "default"

    # What is minimised: `default` is the weighted binary cross-entropy, else module:function of the user's own.
    loss: str = "default"

    # How it is computed. All of these change the last bits.
    bf16: bool = True  # on a GPU only; a CPU computes in float32
    compile: bool = False  # some minutes before the first step
    deterministic: bool = False  # on a GPU: repeat to the bit, at a price
    sync_batch_norm: bool = False  # with several GPUs and small batches on each

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Runtime:
    """What a run may change from one start to the next without another outcome.

    Attributes:
        device: "auto", "cpu" or "cuda".
        input_threads: threads that read and decode, 0 for none beside the main one.
        batches_ahead: batches read before they are asked for.
        checkpoint_every: steps; 0 leaves checkpoints to the ends of epochs and to SIGTERM.
        keep_checkpoints: so many of the newest stay.
        log_every: steps between two looks at the loss, each of which waits for the GPU.
        loggers: trackers that are told: tensorboard, wandb, mlflow; csv, which is log.csv, is always there.
    """

    device: str = "auto"
    input_threads: int = 2
    batches_ahead: int = 4
    checkpoint_every: int = 0
    keep_checkpoints: int = 3
    log_every: int = 100
    loggers: tuple[str, ...] = ("tensorboard", "csv")


# Settings of what is done to images, which a head over series does not see.
OF_IMAGES = frozenset(("augment", "mixup_alpha", "flip_probability", "rotation_degrees", "brightness", "contrast"))
OF_IMAGES |= {"noise_sigma", "compile", "sync_batch_norm"}
# What people call some settings.
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
        if not low <= value <= high:  # NaN is never within
            raise ConfigError(f"{name}: {value} is outside [{low:g}, {high:g}]")
    if config.head not in HEADS:
        raise ConfigError(f"head: {config.head!r} is not one of {', '.join(HEADS)}")
    if config.head_share not in HEAD_SHARES:
        raise ConfigError(f"head_share: {config.head_share!r} is not one of {', '.join(HEAD_SHARES)}")
    if config.split_fractions is not None:
        check_fractions(config.split_fractions)


def check_fractions(fractions: tuple[float, float, float]) -> None:
    """Raise a ConfigError unless these are shares for train, validation and test; all but train's may be 0."""
    if not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-9 and fractions[0] > 0):  # NaN is no share
        raise ConfigError(
            f"split_fractions: {tuple(fractions)} are not shares for train, validation and test that add up to 1, "
            "the first above 0; [0.7,0.15,0.15], or [0.8,0.2,0] without a test set"
        )


def from_mapping(values: Mapping[str, Any]) -> TrainConfig:
    """Make the settings of a run from names and values; what is not named keeps its default.

    Raises:
        ConfigError: an unknown name (the nearest is suggested), a value of another type, or out of range.
    """
    types = get_type_hints(TrainConfig)
    for name in values:
        if name not in types:
            near = [SHORT[name]] if name in SHORT else difflib.get_close_matches(name, types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(types)}"
            raise ConfigError(f"{name}: unknown setting, {hint}")
    return TrainConfig(**{name: _typed(name, value, types[name]) for name, value in values.items()})


def new_settings(values: Mapping[str, Any]) -> TrainConfig:
    """As `from_mapping`; the size follows the model where none is given."""
    size_px = PREFERRED_SIZES.get(values.get("model", TrainConfig.model), TrainConfig.size_px)
    return from_mapping({"size_px": size_px} | dict(values))


def parse_setting(text: str) -> tuple[str, Any]:
    """Read `name=value` as the command line has it; the value as JSON, or as text where it is none."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text}: a setting is given as name=value")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


def to_mapping(config: TrainConfig | Runtime) -> dict[str, Any]:
    """Return names and values, fit for JSON; `from_mapping` gives an equal TrainConfig back."""
    return dataclasses.asdict(config)


def differences(a: TrainConfig, b: TrainConfig) -> list[str]:
    """Say in which settings two differ, as `name: value of a, value of b`."""
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
