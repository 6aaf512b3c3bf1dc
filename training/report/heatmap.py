"""Show where in a slice a network finds its evidence: HiResCAM, with captum's gradients."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from training.data.neighbours import Context
from training.model.augment import Normalise
from training.model.network import FusionNet, load_run_weights
from training.run.runs import Run


class HeatMaps:
    """A run's network, ready to be asked where its evidence lies."""

    MISSING: ClassVar[str] = (
        "they need the run's weights, a network with feature maps, and captum (pip install 'ich-cache[training]')."
    )

    def __init__(self, net: FusionNet, normalise: Normalise, layer: nn.Module, context: Context | None = None) -> None:
        """Take a network with its best weights, the layer whose feature maps are to be weighed, and what it sees."""
        from captum.attr import LayerGradientXActivation  # type: ignore[import-untyped]

        self._share = LayerGradientXActivation(net, layer)
        self._normalise = normalise
        self.context = context

    def of(self, images: np.ndarray, z_norm: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return (n, S, S) float32 in [-1, 1]: above 0 where a class was raised, below where lowered; peak 1 or -1.

        What lowered it is kept: of a bleed that was missed there is often nothing else.

        Args:
            images: (n, C, S, S) uint8 grey levels, of stacks where the run has context.
            z_norm: (n,) in [0, 1]. classes: (n,) which class of each image.

        The feature maps are weighed place by place, with their own gradients. Where a network takes the mean of them
        this is Grad-CAM; where it takes the largest too, as small_resnet does, Grad-CAM smears the gradient of that one
        place over all, and lies beside the bleed: see benchmarks/demo.py.

        Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
            networks", arXiv 2011.08891, eq. 4, without ReLU; Selvaraju et al., "Grad-CAM", ICCV 2017, section 3.3, for
            what a negative value says.
        """
        grey = torch.from_numpy(images).float().div_(255)
        place = torch.from_numpy(np.asarray(z_norm, np.float32))
        target = torch.from_numpy(np.asarray(classes, np.int64))
        shares: Tensor = self._share.attribute((self._normalise(grey), place), target=target)
        maps = shares.sum(1, keepdim=True)
        side = images.shape[-1]
        maps = nn.functional.interpolate(maps.detach(), size=(side, side), mode="bilinear", align_corners=False)[:, 0]
        return (maps / maps.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)).numpy()


def open_heat_maps(run: Run) -> HeatMaps | None:
    """Return heat maps of a run's best weights on the CPU; None where HeatMaps.MISSING says why."""
    try:
        import captum.attr  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return None
    if not run.slice_weights.exists():
        return None
    net = load_run_weights(run.config, len(run.data.classes), run.slice_weights, run.channels).eval()
    layer = last_feature_maps(net, run.config.size_px)
    if layer is None:
        return None
    return HeatMaps(net, Normalise(*run.mean_std, torch.device("cpu")), layer, run.context)


def last_feature_maps(net: FusionNet, size_px: int) -> nn.Module | None:
    """Return the backbone's last module that gives feature maps (1, D, h, h) with h > 1; None where none does."""
    found: list[nn.Module] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            found.append(module)

    handles = [module.register_forward_hook(note) for module in net.backbone.modules()]
    with torch.no_grad():
        net(torch.zeros(1, net.channels, size_px, size_px), torch.zeros(1))
    for handle in handles:
        handle.remove()
    return found[-1] if found else None
