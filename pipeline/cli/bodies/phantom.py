"""The body of `phantom`: synthetic studies on disk, and what they hold printed."""

from functools import partial
from pathlib import Path

from tqdm import tqdm

from phantom import dataset
from phantom.errors import PhantomError
from phantom.planted import make_planted
from pipeline import system
from pipeline.errors import SourceError
from pipeline.terminal import print_line
from pipeline.words import counted


def write_phantom(
    *, out: Path, patients: int, seed: int, workers: int | None, bleeding: int, faint_edges: bool, shuffled: bool
) -> None:
    """Write the studies.

    Raises:
        SourceError: the folder is not free, or cannot be written.
    """
    processes = min(workers if workers is not None else system.cores(), patients)
    with tqdm(total=patients, unit=" patients", disable=None) as bar:

        def patient_done(number: int) -> None:
            bar.update(1)

        make = partial(make_planted, edges=faint_edges, shuffled=shuffled, bleeding=bleeding)
        try:
            summary = dataset.write(out, patients, seed, patient_done, workers=processes, make=make)
        except PhantomError as error:
            raise SourceError(str(error)) from None
    positive = ", ".join(f"{number:,} {name}" for name, number in summary.positive.items())
    print_line(
        f"{out}: {counted(summary.slices, 'slice')} of {counted(summary.patients, 'patient')}; with blood: {positive}"
    )
