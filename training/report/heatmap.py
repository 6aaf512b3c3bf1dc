"""Heat maps of the places in a slice that a network responds to: captum's integrated gradients from a blurred slice."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from training.data.neighbours import Context
from training.model.augment import Normalise
from training.model.network import FusionNet, load_run_weights
from training.run.runs import Run

# Widths of blur and smoothing, as shares of the image's side. benchmarks/README.md has results of other values.
BLURRED, SMOOTHED = 1 / 6, 1 / 10
STEPS = 4  # of the integral


class HeatMaps:
    """The heat maps of a run's network.

    Attributes:
        context: neighbouring slices in the images, None without.
        MISSING: why a run may have no heat maps.
    """

    MISSING: ClassVar[str] = "they need the run's weights and captum (pip install 'ich-cache[training]')."

    def __init__(self, net: FusionNet, normalise: Normalise, context: Context | None = None) -> None:
        """Take a network with its best weights, the normalisation of its images, and their neighbouring slices."""
        from captum.attr import IntegratedGradients  # type: ignore[import-untyped]

        self._shares = IntegratedGradients(net)
        self._normalise = normalise
        self.context = context

    def compute(self, images: np.ndarray, z_norm: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return one heat map per image: above 0 where it raised the logit of its class, below 0 where it lowered it.

        Negative values are kept, since a false negative often has no others. A map attributes to places the change of
        the logit from the blurred slice to the slice itself. An object wider than the blur shows at its edge.

        Args:
            images: (n, C, S, S) uint8 grey levels; C includes the neighbours if the run has context.
            z_norm: (n,) in [0, 1].
            classes: (n,) index of the class to explain in each image.

        Returns:
            (n, S, S) float32 in [-1, 1], where the largest magnitude is 1; all 0 if nothing changes the logit.

        Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, eq. 1; Sturmfels,
            Lundberg, Lee, "Visualizing the impact of feature attribution baselines", Distill 2020, for the blur.
        """
        shown = self._normalise(torch.from_numpy(images).float().div_(255))
        place = torch.from_numpy(np.asarray(z_norm, np.float32))
        shares: Tensor = self._shares.attribute(
            shown,
            baselines=_mean_around(shown, BLURRED),
            target=torch.from_numpy(np.asarray(classes, np.int64)),
            additional_forward_args=(place,),
            n_steps=STEPS,
            method="riemann_middle",
            internal_batch_size=len(shown),
        )
        maps = _mean_around(shares.detach().float().sum(1, keepdim=True), SMOOTHED)[:, 0]
        return (maps / maps.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)).numpy()


def _mean_around(images: Tensor, share: float) -> Tensor:
    """Return the mean over a square around each pixel of (n, C, S, S), whose side is odd and about `share` of S."""
    side = int(share * images.shape[-1]) // 2 * 2 + 1
    return nn.functional.avg_pool2d(images, side, 1, side // 2, count_include_pad=False)


def open_heat_maps(run: Run) -> HeatMaps | None:
    """Return the heat maps of a run's best weights on the CPU, None without the weights or captum."""
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        return None
    if not run.slice_weights.exists():
        return None
    net = load_run_weights(run.config, len(run.data.classes), run.slice_weights, run.channels).eval()
    return HeatMaps(net, Normalise(*run.mean_std, torch.device("cpu")), run.context)
