"""Export of a head over series, with its slice model, as one program over the slices of a series."""

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
from training.run.task import Task
from training.series.batches import gaps_mm
from training.series.head import GruReader, SeriesHead, TransformerReader
from training.series.mix import read_mix
from training.series.predict import load_head, predict_series

SAMPLE_SERIES = 2
HERE = Processes(0, 1, torch.device("cpu"))
INPUTS = {
    "images": "uint8 grey levels of the slices of one series that have a z position, from foot to head",
    "z_norm": "float32, position within the series, 0 foot, 1 head",
    "gap_mm": "float32, distance in mm to the next slice towards the head, 0 for the last one",
}


def series_program(run: Run, cache: Cache, form: str) -> Program:
    """Return the program of a head's run; its samples are the first series of the cache.

    Args:
        run: the head's run.
        cache: a cache that suits the run.
        form: "onnx" or "torch".

    Raises:
        RunError: if the run has no weights, or the format does not support its head.
    """
    net = load_run_weights(run.config, len(run.data.classes), run.slice_weights, run.channels).eval()
    head, shares = load_head(run, HERE), read_mix(run)
    if run.config.head == "gru" and form == "torch":
        raise RunError(
            f"{run.path}: torch.export fixes the number of slices of a GRU; use --format onnx, or export the slice "
            f"model: train export --run {run.data.base} --format torch"
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
    """A network from grey levels, positions and distances of the slices of a series to their probabilities."""

    mean: Tensor
    std: Tensor
    shares: Tensor

    def __init__(self, net: FusionNet, head: SeriesHead, shares: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        """Take a run's networks, the head's share per class, (K,), and mean and standard deviation per channel."""
        super().__init__()
        self.net, self.head = net, head
        self.gru = OnnxGru(head.read.gru) if isinstance(head.read, GruReader) else None
        self.register_buffer("shares", torch.as_tensor(shares, dtype=torch.float32))
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(np.where(std > 0, std, 1), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, z_norm: Tensor, gap_mm: Tensor) -> Tensor:
        """Return probabilities (L, K) float32 from images (L, C, S, S) uint8, positions and gaps (L,) float32."""
        features = self.net.backbone((images.float() / 255 - self.mean) / self.std).float()
        logits = self.net.logits(features, z_norm)
        slices = self.head.embed(features.half().float(), logits, z_norm, gap_mm)  # float16, as features are stored
        if self.gru is not None:
            read = slices + self.gru(slices)
        else:
            assert isinstance(self.head.read, TransformerReader)
            read = self.head.read.encoder(self.head.read.with_neighbours(slices[None]))[0]
        return torch.sigmoid(logits + self.shares * self.head.correct(read))


class OnnxGru(nn.Module):
    """A bidirectional GRU as an ONNX operator, because tracing PyTorch's GRU would fix the number of slices."""

    def __init__(self, gru: nn.GRU) -> None:
        """Take the weights of a GRU; ONNX orders the update gate before the reset gate."""
        super().__init__()
        self.layers, self.width = gru.num_layers, gru.hidden_size

        def both(kind: str, layer: int) -> Tensor:
            of = [getattr(gru, f"{kind}_l{layer}{direction}").detach() for direction in ("", "_reverse")]
            return torch.stack([torch.cat([update, reset, new]) for reset, update, new in (w.chunk(3) for w in of)])

        for layer in range(self.layers):
            self.register_buffer(f"input_{layer}", both("weight_ih", layer))
            self.register_buffer(f"recurrent_{layer}", both("weight_hh", layer))
            self.register_buffer(f"bias_{layer}", torch.cat([both("bias_ih", layer), both("bias_hh", layer)], 1))

    def forward(self, slices: Tensor) -> Tensor:
        """Return (L, W) from (L, W) when exported to ONNX; in PyTorch itself it returns zeros.

        Source: ONNX operators, GRU-14.
        """
        length = slices.shape[0]
        read = slices[:, None]
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
    """Return inputs of the cache's first series, and their probabilities as computed by `train predict`."""
    order, found = order_series(cache), []
    task = Task(run, cache, Runtime("cpu", input_threads=0), HERE)
    every_gap = gaps_mm(order)
    for begin, end in list(zip(order.starts[:-1], order.starts[1:], strict=True))[:SAMPLE_SERIES]:
        lines = order.lines[begin:end]
        table = cache.table.iloc[lines]
        inputs = {
            "images": read_images(cache, run.config.size_px, table["row"].to_numpy(), run.context),
            "z_norm": table["z_norm"].to_numpy(np.float32),
            "gap_mm": every_gap[begin:end],
        }
        predicted = predict_series(task, lines, tta=False)
        found.append((inputs, predicted.probabilities[np.searchsorted(predicted.lines, lines)]))
    return found
