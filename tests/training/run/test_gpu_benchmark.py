"""Run every part of the GPU benchmark on the CPU at a small size, to make sure that it will run on a GPU."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import repeats
from benchmarks.gpu.cache import make_cache
from benchmarks.gpu.cache import make_table as make_bench_table
from benchmarks.gpu.checks import Report, read_clocks
from benchmarks.gpu.repeats import STEPS, Plan, digest, measure_repeats
from benchmarks.gpu.syncs import of_kernels
from testkit.fake_cache import CLASSES, write_cache
from testkit.tiny_run import HERE, SPAWNED, runtime
from training.data.cache import open_cache
from training.data.linked import link
from training.data.split import split_patients
from training.data.stream import Stream
from training.run.schedule import Schedule


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_every_part_runs_small_and_its_lines_are_kept(tmp_path):
    out = tmp_path / "gpu.json"
    done = CliRunner().invoke(gpu.main, ["--small", "--parts", "bdg", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    assert content["passed"]
    assert content["facts"]["torch"] == torch.__version__
    lines = {check["part"]: [] for check in content["checks"]}
    for check in content["checks"]:
        lines[check["part"]].append(check["name"])
        assert isinstance(check["figure"], str) or math.isfinite(check["figure"])
    for part, name in (
        ("a", "make_inputs, images: CPU against device"),
        ("b", "squeezenet1_1 eager: from the cache / resident"),
        ("b", "shufflenet_v2_x0_5 eager: augmentation on the device"),
        ("c", "steps in which the host waits for the GPU"),
        ("d", "two epochs / resident"),
        ("d", "one process by the path of several / resident"),
        ("f", "evaluation with TTA / forward alone"),
        ("g", "out of memory is one line with what to set"),
        ("h", "peak GPU memory"),
    ):
        assert name in lines[part]
    explained = lines_of_the_page()
    for check in content["checks"]:
        assert any(part in (check["part"], "any") and said in check["name"] for part, said in explained), check
    names = [check["name"] for check in content["checks"]]
    unsaid = {said for _, said in explained if not any(said in name for name in names)}
    # Those of the parts left out here, and the output of nvidia-smi.
    assert unsaid == {"tests marked gpu", "killed and resumed", "the run to be killed was", "clock, power, temperature"}
    assert sum("FAIL" in line for line in done.output.splitlines()) == 1  # the count, in the last line


def lines_of_the_page():
    """Return the part and the line of each row in the page's table of lines."""
    table = (gpu.ROOT / "docs/gpu.md").read_text().split("| part | line | what it says |\n|---|---|---|\n")[1]
    rows = table.split("\n\n")[0].splitlines()
    return [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]


class Started:
    """A process with the interface of `subprocess.Popen` that starts faster."""

    def __init__(self, run, plan, way, kill_at):
        self.process = SPAWNED.Process(target=repeats.train, args=(run, plan, way, kill_at))
        self.process.start()

    def communicate(self, timeout):
        self.process.join(timeout)
        return "", ""

    def kill(self):
        self.process.kill()

    @property
    def returncode(self):
        return self.process.exitcode


def test_a_killed_run_is_compared_with_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "spawn", lambda plan, run, way, kill_at: Started(run, plan, way, kill_at))
    cache = write_cache(tmp_path / "c.zarr", patients=10, slices=5).path
    report = Report()
    measure_repeats(report, tmp_path, Plan(cache, "cpu", "shufflenet_v2_x0_5", ("eager",)))
    assert [check.passed for check in report.checks] == [True, True]
    assert digest(tmp_path / "eager-0") == digest(tmp_path / f"eager-{STEPS}") != ""
    (tmp_path / "eager-0/weights.safetensors").unlink()
    assert digest(tmp_path / "eager-0") == ""


def test_all_tests_marked_gpu_are_run():
    root = Path(gpu.__file__).parents[2]
    marked = {
        str(file.relative_to(root)) for file in root.glob("tests/**/*.py") if "@pytest.mark.gpu" in file.read_text()
    }
    assert marked - {str(Path(__file__).relative_to(root))} == set(gpu.GPU_TESTS)


def test_without_a_gpu_nothing_is_reported_as_passed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == 1
    assert done.output.startswith("no GPU here: nothing measured")


def test_all_parts_stay_within_their_time_and_the_page_gives_it(tmp_path):
    at = gpu.Bench(Report(), tmp_path, gpu.FULL, HERE, runtime(), {})
    listed = gpu.parts(at, "abdeg")
    assert gpu.START_S + sum(part.seconds for part in listed) < 330
    page = (Path(gpu.__file__).parents[2] / "docs/gpu.md").read_text()
    for part in listed:
        assert f"| {part.title} | {part.seconds} |" in page


@pytest.mark.parametrize("model", gpu.FULL, ids=lambda model: model.name)
def test_compiled_parts_have_batches_of_one_size(model):
    table = make_bench_table(model.distinct, model.copies)
    for compiled in (False, True):
        config = model.config(compiled=compiled)
        subsets = split_patients(table, CLASSES, config.split_fractions, seed=config.seed)
        schedule = Schedule(int((subsets == "train").sum()), config)
        sizes = {schedule.images_in_batch(batch) for batch in range(schedule.batches)}
        assert len(sizes) == 1 or not compiled
        taken = model.load.rounds * (model.load.warm + model.load.steps) + 16  # plus those in the profiler
        assert taken <= schedule.batches  # otherwise the stream would restart while it is timed


def test_gaps_are_those_in_which_no_kernel_runs():
    spans = [(0.0, 1.0), (0.5, 2.0), (0.6, 0.7), (2.00001, 3.0), (3.001, 4.0)]
    busy = of_kernels(reversed(spans))
    assert busy.seconds == 4
    assert busy.idle == pytest.approx(0.00101)
    assert busy.long_gaps == 1
    assert of_kernels([]).seconds == 0


def test_clocks_are_medians_of_whole_lines():
    assert read_clocks("1980, 650.5, 55\n1900, 600.5, 50\n1940, 640.0, 53\n[N/A], 1, 1\n19") == pytest.approx(
        [1940, 640, 53]
    )
    assert read_clocks("Failed to initialize NVML\n") is None


def test_copies_of_a_slice_are_separate_slices(tmp_path):
    path = make_cache(tmp_path / "c.zarr", 32, 64, 3)
    cache = open_cache(path)
    assert cache.num_slices == 192
    assert not link(cache, 32).groups
    images = {}
    for batch in Stream(cache, 32, range(192), 64).epoch(0, 0, shuffle=False):
        for line, image in zip(batch.lines.tolist(), batch.images, strict=True):
            images[line] = image.clone()
    for line in range(192):
        assert torch.equal(images[line], images[line % 64])
    assert not torch.equal(images[0], images[1])
    labels = cache.labels()
    assert (labels[:64] == labels[64:128]).all()
    shards = [file for file in Path(path).rglob("0/0/0") if file.is_file()]
    assert len({file.stat().st_ino for file in shards if "images" in str(file)}) == 1
