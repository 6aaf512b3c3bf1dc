"""Read weight files of any origin, and find out which of a network's tensors they hold."""

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

# Under which name the frameworks keep the state dict in a checkpoint.
CONTAINERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "net")
ORIGIN = "origin"  # the one entry of a run's own file: where its weights come from, and the versions of their modules
# Less of the backbone than this is another backbone.
LEAST_SHARE = 0.9
COUNTER = "num_batches_tracked"  # older files have none, and no layer reads it
# What torchvision's published files still call otherwise than its modules: DenseNet's layers, the transformers' MLPs.
RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(\.mlp\.)linear_2\."), r"\g<1>3."),
)


@dataclass(frozen=True)
class Match:
    """What a weight file has for a module.

    Attributes:
        used: the module's names -> tensors of the right shape.
        missing: the module's names that the file does not have, or in another shape.
        left_out: the file's names that the module has no use for.
    """

    used: Mapping[str, Tensor]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.used)} tensors used"]
        for what, names in (("left out", self.left_out), ("missing and fresh", self.missing)):
            parts.append(
                f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{' ...' if names[3:] else ''})" * bool(names))
            )
        return ", ".join(parts)


def load_foreign(net: nn.Module, path: Path, channels: Sequence[int] = RGB) -> Match:
    """Load what a file holds for a network: for all of it, or for its backbone alone.

    The file may be a plain state dict or a checkpoint of Lightning and others around one; its names may stand behind
    prefixes (`module.`, `backbone.`, `model.`), or be the numbers of an nn.Sequential of the backbone's children, as
    RadImageNet's are. A classifier of another width is left out.

    Args:
        net: with a `backbone`.
        channels: which window each channel of the network shows; weights for three are made to fit.

    Raises:
        ConfigError: the file is missing, holds no state dict, or less than 9 in 10 tensors of the backbone.
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
    """Load a state dict that has every tensor of a network and no other.

    Raises:
        ConfigError: it has not.
    """
    state, wanted = read_state(path), net.state_dict()
    if problem := _misfit(wanted, state):
        raise ConfigError(f"{path}: holds the weights of another network: {problem}")
    load_own(net, state)


def load_own(net: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load a state dict under the names and in the shapes of a network.

    Modules may read theirs by its version, and MNASNet reads none without one. `state_dict()` keeps the versions beside
    the tensors, in `_metadata`; a state dict that has none is taken for one of this network as it is.
    """
    versions = getattr(state, "_metadata", None)
    net.load_state_dict(with_versions(state, versions or versions_of(net)), strict=strict)


def versions_of(net: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the versions of a network's modules, as its state dict has them."""
    found: dict[str, dict[str, Any]] = net.state_dict()._metadata  # type: ignore[attr-defined]
    return found


def with_versions(state: Mapping[str, Tensor], versions: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Tensor]:
    """Return a state dict that has the versions of its modules beside its tensors, where they are known."""
    versioned = OrderedDict(state)
    if versions is not None:
        versioned._metadata = versions  # type: ignore[attr-defined]
    return versioned


def best_match(module: nn.Module, state: Mapping[str, Tensor], channels: Sequence[int]) -> Match:
    """Find the reading of a file's names that gives the most of a module's tensors."""
    wanted = module.state_dict()
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    best = max(
        ({_today(rename(name), shapes): name for name in state if rename(name)} for rename in _readings(module, state)),
        key=lambda reading: sum(name in shapes for name in reading),
    )
    used = {name: state[best[name]] for name in wanted if name in best}
    used = _fitted(module, used, shapes, channels)
    taken = {best[name] for name in used}
    missing = tuple(name for name in wanted if name not in used and not name.endswith(COUNTER))
    return Match(used, missing, tuple(name for name in state if name not in taken))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or from what torch.save made, out of the checkpoint around it.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"--weights {path}: no such file; give imagenet, none, or a file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own
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
        raise ConfigError(f"{path}: is not a state dict, a mapping of names to tensors")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        origin = (file.metadata() or {}).get(ORIGIN, "")
    try:
        versions = {name: {"version": int(version)} for name, version in json.loads(origin)["versions"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # another's file, or of a run that did not keep them
        return tensors
    return with_versions(tensors, versions)


def _today(name: str, wanted: Mapping[str, object]) -> str:
    """Return what a tensor is called today, where a module has no tensor of the name."""
    for old, new in RENAMED if name not in wanted else ():
        name = old.sub(new, name)
    return name


def _backbone(net: nn.Module) -> nn.Module:
    return net.get_submodule("backbone")


def _readings(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[Callable[[str], str]]:
    """Yield ways to read a file's names as a module's: behind a prefix, and by number behind one."""
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
    """Return the tensors of the right shape; the first kernel is made to fit other channels than three."""
    first = _first_kernel(module)
    fitted = dict(found)
    # A backbone of three channels is of three windows; a whole network of three may be of three slices.
    other = tuple(channels) != RGB and (not hasattr(module, "backbone") or shapes.get(first, ())[1:2] != (len(RGB),))
    if other and first in fitted and fitted[first].shape[1] == len(RGB):
        fitted[first] = repeat_kernel(fitted[first], channels)
    return {name: tensor for name, tensor in fitted.items() if tensor.shape == shapes[name]}


def _first_kernel(module: nn.Module) -> str:
    try:
        return f"{first_convolution(module)[0]}.weight"
    except StopIteration:  # a backbone of the user's own may have none
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
