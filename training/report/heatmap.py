"""Show where in a slice a network finds its evidence: integrated gradients from the blurred slice, by captum."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from training.data.neighbours import Context
from training.model.augment import Normalise
from training.model.network import FusionNet, load_run_weights
from training.run.runs import Run

# Shares of the image's side, and steps: benchmarks/README.md has what others gave.
BLURRED, SMOOTHED = 1 / 6, 1 / 10
STEPS = 4


class HeatMaps:
    """A run's network, ready to be asked where its evidence lies."""

    MISSING: ClassVar[str] = "they need the run's weights and captum (pip install 'ich-cache[training]')."

    def __init__(self, net: FusionNet, normalise: Normalise, context: Context | None = None) -> None:
        """Take a network with its best weights, and what it sees."""
        from captum.attr import IntegratedGradients  # type: ignore[import-untyped]

        self._shares = IntegratedGradients(net)
        self._normalise = normalise
        self.context = context

    def of(self, images: np.ndarray, z_norm: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return (n, S, S) float32 in [-1, 1]: above 0 where a class was raised, below where lowered; peak 1 or -1.

        What lowered it is kept: of a bleed that was missed there is often nothing else.

        Args:
            images: (n, C, S, S) uint8 grey levels, of stacks where the run has context.
            z_norm: (n,) in [0, 1]. classes: (n,) which class of each image.

        A map says which places, where the slice differs from itself blurred, change the logit of the class; all of it
        together is the change from the blurred slice to the slice. What is wider than the blur shows at its edge.

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
    """Return the mean of the square around each pixel of (n, C, S, S), of an odd side near `share` of S."""
    side = int(share * images.shape[-1]) // 2 * 2 + 1
    return nn.functional.avg_pool2d(images, side, 1, side // 2, count_include_pad=False)


def open_heat_maps(run: Run) -> HeatMaps | None:
    """Return heat maps of a run's best weights on the CPU; None where HeatMaps.MISSING says why."""
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        return None
    if not run.slice_weights.exists():
        return None
    net = load_run_weights(run.config, len(run.data.classes), run.slice_weights, run.channels).eval()
    return HeatMaps(net, Normalise(*run.mean_std, torch.device("cpu")), run.context)
