"""A head over series, with its slice model, as a program over the slices of one series."""

import numpy as np
import torch
from torch import Tensor, nn

from training.data.cache import Cache
from training.data.neighbours import order_series
from training.errors import RunError
from training.model.network import FusionNet, load_run_weights
from training.model.program import Program, blank_images, metadata
from training.report.pictures import read_images
from training.run.config import Runtime
from training.run.distributed import Processes
from training.run.runs import Run
from training.series.batches import gaps_mm
from training.series.head import GruReader, SeriesHead, TransformerReader
from training.series.mix import read_mix
from training.series.predict import load_head, predict_series

SAMPLE_SERIES = 2
HERE = Processes(0, 1, torch.device("cpu"))
INPUTS = {
    "images": "uint8 grey levels of the slices of one series that have a z position, from foot to head",
    "z_norm": "float32, position within the series, 0 foot, 1 head",
    "gap_mm": "float32, distance to the next slice toward the head, 0 for the last one",
}


def series_program(run: Run, cache: Cache, form: str) -> Program:
    """Return a head's run as a program over the slices of one series; the first series of the cache are samples.

    Raises:
        RunError: the run has no weights, or its head has no form in the format.
    """
    net = load_run_weights(run.config, len(run.data.classes), run.slice_weights, run.channels).eval()
    head, shares = load_head(run, HERE), read_mix(run)
    if run.config.head == "gru" and form == "torch":
        raise RunError(
            f"{run.path}: a torch program holds a GRU only for one number of slices; write --format onnx, or export "
            f"its slice model: train export --run {run.data.base} --format torch"
        )
    some = torch.full((3,), 0.5)
    about = {
        "inputs": INPUTS,
        "head": run.config.head,
        "shares": dict(zip(run.data.classes, shares.tolist(), strict=True)),
    }
    return Program(
        module=ExportedSeries(net, head, shares, *run.mean_std).eval(),
        inputs={"images": blank_images(run, 3), "z_norm": some, "gap_mm": 10 * some},
        axis="slices",
        about=metadata(run, about),
        samples=_samples(run, cache),
    )


class ExportedSeries(nn.Module):
    """Grey levels, positions and distances of the slices of a series in, probabilities out."""

    mean: Tensor
    std: Tensor
    shares: Tensor

    def __init__(self, net: FusionNet, head: SeriesHead, shares: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        """Take a run's networks, the share of the head by class, (K,), and mean and standard deviation by channel."""
        super().__init__()
        self.net, self.head = net, head
        self.gru = OnnxGru(head.read.gru) if isinstance(head.read, GruReader) else None
        self.register_buffer("shares", torch.as_tensor(shares, dtype=torch.float32))
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(np.where(std > 0, std, 1), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, z_norm: Tensor, gap_mm: Tensor) -> Tensor:
        """Return probabilities (L, K) float32 from images (L, C, S, S) uint8, and (L,) float32 each of the others."""
        features = self.net.backbone((images.float() / 255 - self.mean) / self.std).float()
        logits = self.net.judge(features, z_norm)
        brought = self.head.look(features.half().float(), logits, z_norm, gap_mm)  # as features are stored
        if self.gru is not None:
            read = brought + self.gru(brought)
        else:
            assert isinstance(self.head.read, TransformerReader)
            read = self.head.read.encoder(self.head.read.place(brought[None]))[0]
        return torch.sigmoid(logits + self.shares * self.head.correct(read))


class OnnxGru(nn.Module):
    """A GRU in both directions as ONNX's operator, for PyTorch's own would be traced for one number of slices."""

    def __init__(self, gru: nn.GRU) -> None:
        """Take the weights of a GRU; ONNX has the update gate before the reset gate."""
        super().__init__()
        self.layers, self.width = gru.num_layers, gru.hidden_size

        def both(kind: str, layer: int) -> Tensor:
            of = [getattr(gru, f"{kind}_l{layer}{direction}").detach() for direction in ("", "_reverse")]
            return torch.stack([torch.cat([update, reset, new]) for reset, update, new in (w.chunk(3) for w in of)])

        for layer in range(self.layers):
            self.register_buffer(f"input_{layer}", both("weight_ih", layer))
            self.register_buffer(f"recurrent_{layer}", both("weight_hh", layer))
            self.register_buffer(f"bias_{layer}", torch.cat([both("bias_ih", layer), both("bias_hh", layer)], 1))

    def forward(self, brought: Tensor) -> Tensor:
        """Return (L, W) from (L, W), when traced to ONNX; run by PyTorch it gives zeros.

        Source: ONNX operators, GRU-14.
        """
        length = brought.shape[0]
        read = brought[:, None]
        for layer in range(self.layers):
            weights = [getattr(self, f"{name}_{layer}") for name in ("input", "recurrent", "bias")]
            both = torch.onnx.ops.symbolic(
                "GRU",
                [read, *weights],
                {"hidden_size": self.width, "linear_before_reset": 1, "direction": "bidirectional"},
                dtype=torch.float32,
                shape=(length, 2, 1, self.width),
                version=14,
            )
            read = both.transpose(1, 2).reshape(length, 1, 2 * self.width)
        return read[:, 0]


def _samples(run: Run, cache: Cache) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """The cache's first series and their probabilities, as `train predict` gives them."""
    order, found = order_series(cache), []
    every_gap = gaps_mm(order)
    for begin, end in list(zip(order.starts[:-1], order.starts[1:], strict=True))[:SAMPLE_SERIES]:
        lines = order.lines[begin:end]
        table = cache.table.iloc[lines]
        inputs = {
            "images": read_images(cache, run.config.size_px, table["row"].to_numpy(), run.context),
            "z_norm": table["z_norm"].to_numpy(np.float32),
            "gap_mm": every_gap[begin:end],
        }
        predicted = predict_series(run, cache, lines, Runtime("cpu", input_threads=0), HERE, tta=False)
        found.append((inputs, predicted.probabilities[np.searchsorted(predicted.lines, lines)]))
    return found
