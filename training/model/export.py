"""Export a run's network to one file that does not need this package, and check that it gives the same results."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.cache import Cache
from training.errors import RunError
from training.model.program import Program, slice_program
from training.run.digests import cannot_write
from training.run.runs import Run
from training.series.export import series_program

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
PARITY = 1e-4


def export(run: Run, cache: Cache, form: str, out: Path) -> float:
    """Export a run's best network as ONNX or as a torch.export program, for any number of slices, and check it.

    For a run on slices, the program takes a batch of slices; for a head over series, it includes the slice model and
    takes the slices of one series, from foot to head.

    Args:
        run: to export.
        cache: its first slices, or first series, are predicted both ways.
        form: "onnx" or "torch".
        out: the file, .onnx or .pt2.

    Returns:
        the largest difference between a probability of the file and of the run.

    Raises:
        RunError: if the run has no weights, a package is missing, the format does not support the run's head, or the
            difference is at least PARITY, in which case the file is removed.
        NotWrittenError: if the file cannot be written.
    """
    if out.suffix != SUFFIXES[form]:
        raise RunError(f"{out}: the format {form} needs a file name that ends in {SUFFIXES[form]}")
    program = series_program(run, cache, form) if run.has_head else slice_program(run, cache)
    length = torch.export.Dim(program.axis, min=1)
    shapes = tuple({0: length} for _ in program.inputs)
    traced = torch.export.export(program.module, tuple(program.inputs.values()), dynamic_shapes=shapes)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".partial.{out.name}")
    try:
        if form == "onnx":
            _write_onnx(traced, temporary, program)
        else:
            content = io.BytesIO()  # torch does not report a full disk
            torch.export.save(traced, content, extra_files={"metadata.json": json.dumps(dict(program.about))})
            temporary.write_bytes(content.getvalue())
        difference = max(_parity(temporary, form, *sample) for sample in program.samples)
        if not difference < PARITY:
            raise RunError(
                f"{out}: not written: a probability would differ from the run's by {difference:.1e}, but at most "
                f"{PARITY:.0e} is allowed; try the other format"
            )
        temporary.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _write_onnx(traced: torch.export.ExportedProgram, path: Path, program: Program) -> None:
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise RunError(f"ONNX needs the package {error.name}; run: pip install 'ich-cache[export]'") from error
    torch.onnx.export(
        traced,
        (),
        path,
        input_names=list(program.inputs),
        output_names=["probabilities"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    _name_axis(model.graph, program.axis)
    onnx.helper.set_model_props(model, dict(program.about))
    onnx.save(model, path)


def _name_axis(graph: Any, name: str) -> None:
    """Rename the dynamic axis, for which the exporter has generated a name."""
    generated = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for length in value.type.tensor_type.shape.dim:
            if length.dim_param == generated:
                length.dim_param = name


def _parity(path: Path, form: str, inputs: Mapping[str, np.ndarray], expected: np.ndarray) -> float:
    """Return the largest difference between the file's probabilities and the expected ones."""
    return float(np.abs(_predict(path, form, inputs) - expected).max())


def _predict(path: Path, form: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    if form == "torch":
        module = torch.export.load(path).module()
        with torch.inference_mode():
            return module(*map(torch.from_numpy, inputs.values())).double().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0].astype(np.float64)
