"""Train common timm backbones with random weights for one step each, then save, load and export them.

    python benchmarks/backbones.py [--onnx] [NAME ...]

Prints the largest difference in probability between the run and the exported file, and exits with 1 if one fails.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from testkit.fake_cache import write_cache
from testkit.timm_models import COMMON, train_save_load_export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(COMMON))
    parser.add_argument("--onnx", action="store_true", help="export to ONNX instead of a torch.export program")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder) / "cache.zarr", patients=6, slices=4, sizes=tuple(sorted({*COMMON.values()})))
        for name in options.names:
            began = time.perf_counter()
            try:
                form = "onnx" if options.onnx else "torch"
                result = f"{train_save_load_export(name, Path(folder) / name, cache.path, form):.1e}"
            except Exception as error:  # go on with the others
                failed.append(name)
                result = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"{name:32} {time.perf_counter() - began:6.1f} s  {result}", flush=True)
    print(f"{len(options.names) - len(failed)} of {len(options.names)} passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
