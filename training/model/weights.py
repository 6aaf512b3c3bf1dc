"""Load weight files of any origin, by finding out which of a network's tensors they hold."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import ConfigError
from training.model.channels import RGB, first_convolution, repeat_kernel

# Keys under which frameworks store the state dict in a checkpoint.
CONTAINERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "net")
ORIGIN = "origin"  # the metadata entry in a run's own file: origin of its weights and versions of their modules
# A file with a smaller share of the backbone's tensors is taken to be for another backbone.
LEAST_SHARE = 0.9
COUNTER = "num_batches_tracked"  # missing in older files, and not used by any layer
# Old names in torchvision's published files: layers of DenseNet and MLPs of the transformers.
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(\.mlp\.)linear_2\."), r"\g<1>3."),
)


@dataclass(frozen=True)
class Match:
    """The tensors of a weight file that fit a module.

    Attributes:
        used: the module's names -> tensors of the right shape.
        missing: the module's names that are not in the file, or have a different shape there.
        left_out: the file's names that the module does not use.
    """

    used: Mapping[str, Tensor]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.used)} tensors used"]
        for what, names in (("left out", self.left_out), ("missing and initialised", self.missing)):
            parts.append(
                f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{' ...' if names[3:] else ''})" * bool(names))
            )
        return ", ".join(parts)


def load_foreign(net: nn.Module, path: Path, channels: Sequence[int] = RGB) -> Match:
    """Load the tensors of a file that fit a network, for all of it or for its backbone alone.

    The file may be a plain state dict, or a checkpoint from Lightning or another framework that contains one. Its names
    may have prefixes (`module.`, `backbone.`, `model.`), or be the indices of an nn.Sequential of the backbone's
    children, as in RadImageNet. A classifier of a different width is left out.

    Args:
        net: a network with a `backbone`.
        path: the file.
        channels: window of each channel of the network; weights for three channels are converted.

    Returns:
        the tensors that were used, missing and left out.

    Raises:
        ConfigError: if the file is missing, does not hold a state dict, or has less than 90 % of the backbone's
            tensors.
    """
    state = read_state(path)
    whole, backbone = (best_match(module, state, channels) for module in (net, _backbone(net)))
    own = [name for name in whole.used if not name.startswith("backbone.")]
    target, match = (net, whole) if own else (_backbone(net), backbone)
    total = sum(not name.endswith(COUNTER) for name in _backbone(net).state_dict())
    if len(backbone.missing) > (1 - LEAST_SHARE) * total:
        raise ConfigError(
            f"{path}: holds the weights of another network: {len(backbone.missing)} of the backbone's "
            f"{total} tensors are missing, such as {backbone.missing[0]}; it has {', '.join(list(state)[:3])}"
        )
    load_own(target, match.used, strict=False)
    return match


def load_exactly(net: nn.Module, path: Path) -> None:
    """Load a state dict that must have exactly the tensors of a network.

    Raises:
        ConfigError: if it does not.
    """
    state, wanted = read_state(path), net.state_dict()
    if problem := _misfit(wanted, state):
        raise ConfigError(f"{path}: holds the weights of another network: {problem}")
    load_own(net, state)


def load_own(net: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load a state dict with the names and shapes of a network.

    Modules may depend on the version of their state, and MNASNet requires one. `state_dict()` keeps the versions next
    to the tensors, in `_metadata`; without them, the state dict is assumed to have the versions of this network.
    """
    versions = getattr(state, "_metadata", None)
    net.load_state_dict(with_versions(state, versions or versions_of(net)), strict=strict)


def versions_of(net: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the versions of a network's modules, in the form that a state dict has them."""
    found: dict[str, dict[str, Any]] = net.state_dict()._metadata  # type: ignore[attr-defined]
    return found


def with_versions(state: Mapping[str, Tensor], versions: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Tensor]:
    """Return a state dict with the versions of its modules attached, if they are known."""
    versioned = OrderedDict(state)
    if versions is not None:
        versioned._metadata = versions  # type: ignore[attr-defined]
    return versioned


def best_match(module: nn.Module, state: Mapping[str, Tensor], channels: Sequence[int]) -> Match:
    """Find the interpretation of a file's names that matches the most tensors of a module."""
    wanted = module.state_dict()
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    best = max(
        (
            {_current_name(rename(name), shapes): name for name in state if rename(name)}
            for rename in _interpretations(module, state)
        ),
        key=lambda reading: sum(name in shapes for name in reading),
    )
    used = {name: state[best[name]] for name in wanted if name in best}
    used = _fitted(module, used, shapes, channels)
    taken = {best[name] for name in used}
    missing = tuple(name for name in wanted if name not in used and not name.endswith(COUNTER))
    return Match(used, missing, tuple(name for name in state if name not in taken))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a torch.save file, extracting it from a checkpoint if necessary.

    Raises:
        ConfigError: if the file is missing or does not hold a state dict.
    """
    if not path.is_file():
        raise ConfigError(f"--weights {path}: no such file; give imagenet, none, or a file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: cannot be read as weights ({reason}); only tensors are read: save just the state dict"
        ) from error
    while isinstance(state, dict) and (
        inner := next((name for name in CONTAINERS if isinstance(state.get(name), dict)), "")
    ):
        state = state[inner]
    tensors = isinstance(state, dict) and {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(f"{path}: is not a state dict, which is a mapping of names to tensors")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
        origin = (file.metadata() or {}).get(ORIGIN, "")
    try:
        versions = {name: {"version": int(version)} for name, version in json.loads(origin)["versions"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # a foreign file, or from a run that did not save them
        return tensors
    return with_versions(tensors, versions)


def _current_name(name: str, wanted: Mapping[str, object]) -> str:
    """Return the current name of a tensor, unless the module has one with the given name."""
    for old, new in RENAMED if name not in wanted else ():
        name = old.sub(new, name)
    return name


def _backbone(net: nn.Module) -> nn.Module:
    return net.get_submodule("backbone")


def _interpretations(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[Callable[[str], str]]:
    """Yield ways to interpret a file's names as a module's: after a prefix, and as an index after a prefix."""
    prefixes = {"".join(f"{part}." for part in name.split(".")[:depth]) for name in state for depth in range(4)}
    children = [name for name, _ in module.named_children()]

    def behind(prefix: str) -> Callable[[str], str]:
        return lambda name: name.removeprefix(prefix) if name.startswith(prefix) else ""

    def by_number(prefix: str) -> Callable[[str], str]:
        def rename(name: str) -> str:
            number, _, rest = behind(prefix)(name).partition(".")
            return f"{children[int(number)]}.{rest}" if number.isdigit() and int(number) < len(children) else ""

        return rename

    for prefix in sorted(prefixes, key=lambda text: (len(text), text)):
        yield behind(prefix)
        yield by_number(prefix)


def _fitted(
    module: nn.Module, found: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], channels: Sequence[int]
) -> dict[str, Tensor]:
    """Return the tensors of the right shape, after converting the first kernel if there are not three channels."""
    first = _first_kernel(module)
    fitted = dict(found)
    # A backbone with three channels is for three windows; a complete network with three may be for three slices.
    other = tuple(channels) != RGB and (not hasattr(module, "backbone") or shapes.get(first, ())[1:2] != (len(RGB),))
    if other and first in fitted and fitted[first].shape[1] == len(RGB):
        fitted[first] = repeat_kernel(fitted[first], channels)
    return {name: tensor for name, tensor in fitted.items() if tensor.shape == shapes[name]}


def _first_kernel(module: nn.Module) -> str:
    try:
        return f"{first_convolution(module)[0]}.weight"
    except StopIteration:  # the user's own backbone may not have one
        return ""


def _misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing:
        return f"{len(missing)} of {len(wanted)} tensors are missing, such as {min(missing)}"
    if extra:
        return f"{len(extra)} tensors are unknown, such as {min(extra)}"
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            return f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
    return ""
