"""Damage small label files in thousands of ways: each must be read completely or refused in one line.

    python benchmarks/fuzz_labels.py --mutants 10000

Every image that Python's csv reader finds in a file that is read must be in the table.
"""

import csv
import io
import random
import sys

from fuzz import drop_bytes, flip_bits, repeat_bytes, truncate
from mutants import campaign

from pipeline.errors import SourceError
from pipeline.planning.catalog import LabelFile
from pipeline.source.names import escaped
from pipeline.tables.labels import read_labels

CLASSES = ("epidural", "subdural", "any")
IMAGES = [f"ID_{number:09x}" for number in range(12)]


def seeds() -> dict[str, bytes]:
    """Return a label file of each kind, all for the same twelve images."""
    labels = {image: (number % 2, number % 3 == 0, 1) for number, image in enumerate(IMAGES)}
    long = [
        "ID,Label",
        *(f"{image}_{c},{int(v)}" for image in IMAGES for c, v in zip(CLASSES, labels[image], strict=True)),
    ]
    wide = [
        "image,epidural,subdural,any",
        *(f"{image},{','.join(str(int(v)) for v in labels[image])}" for image in IMAGES),
    ]
    return {
        "long": "\n".join([*long, ""]).encode(),
        "long, CRLF, BOM": "\r\n".join([*long, ""]).encode("utf-8-sig"),
        "wide": "\n".join([*wide, ""]).encode(),
        "wide, quoted": "\n".join([*(",".join(f'"{c}"' for c in line.split(",")) for line in wide), ""]).encode(),
        "wide, semicolons": "\n".join([*wide, ""]).replace(",", ";").encode(),
    }


def edit_text(data: bytearray, rng: random.Random) -> None:
    """Replace a character with one that is special in tables."""
    if data:
        data[rng.randrange(len(data))] = rng.choice(b',;\t"\n\r 01.-x_\xff\0')


DAMAGES = (flip_bits, truncate, drop_bytes, repeat_bytes, edit_text, edit_text)


def judge(content: bytes) -> str:
    """Read a mutant and return the outcome."""
    try:
        table = read_labels(LabelFile(filepath="labels.csv"), content, CLASSES)
    except SourceError as error:
        return "refused" if len(escaped(str(error)).splitlines()) == 1 else "refused in several lines"
    if not table.isin((0, 1)).where(table.notna(), True).all(axis=None) or not table.index.is_unique:
        return "wrong: an invalid label, or a duplicate image"
    lost = images_of(content) - set(table.index)
    return f"lost {sorted(lost)[0]!r}" if lost else "read"


def images_of(content: bytes) -> set[str]:
    """Return the images in a file; none if it has a lone carriage return, which ends a line only for csv."""
    if b"\r" in content.replace(b"\r\n", b""):
        return set()
    text = content.decode("utf-8-sig")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    header, *lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    first = [line[0].strip() for line in lines if any(cell.strip() for cell in line)]
    if header[0].strip().lower() == "id":
        lower = [f"_{name}" for name in CLASSES]
        first = [next(cell[: -len(end)] for end in lower if cell.lower().endswith(end)) for cell in first]
    return {cell[:-4] if cell.lower().endswith(".dcm") else cell for cell in first}


if __name__ == "__main__":
    sys.exit(campaign(__doc__, seeds(), DAMAGES, judge))
