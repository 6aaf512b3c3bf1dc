"""Test the commands that a run's page and `train evaluate` suggest for missing results, by running each as given."""

import html
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from testkit.advice import Case, follow
from tests.training.advice.world import CPU, World, advised, call
from tests.training.run.test_train_cli import train
from training.report.report import write_report


def test_evaluate_suggests_how_to_get_and_show_what_is_missing(world: World) -> None:
    for name in ("thresholds.json", "calibration.json"):
        (world.run / name).unlink()
    said = call(*world.on_run("evaluate")).output
    found = re.search("to fit them: (train evaluate .*)", said)
    assert found
    call(*advised(found[1]))
    said = call(*world.on_run("evaluate")).output
    assert "to fit them" not in said
    found = re.search("to show them in report.html: (train report .*)", said)
    assert found
    call(*advised(found[1]))


def _page(world: World) -> str:
    call(*world.on_run("report"))
    return " ".join(re.sub("<[^>]*>", " ", (world.run / "report.html").read_text("utf-8")).split())


def _follow_page(world: World, advice: str) -> None:
    """Find advice on the page of the run, follow it, and check that it is gone."""
    found = re.search(advice, _page(world))
    assert found
    for command in found.groups():
        call(*advised(command))
    assert not re.search(advice, _page(world))


def test_the_page_suggests_commands_for_missing_scores(world: World, monkeypatch: Any) -> None:
    monkeypatch.chdir(world.folder)  # the page names the run by its folder's name
    for pattern in ("scores_*", "predictions_*", "thresholds.json", "calibration.json"):
        for file in world.run.glob(pattern):
            file.unlink()
    _follow_page(world, "The run has no scores yet. Run: (train evaluate .*? --split validation)")
    _follow_page(world, "TTA was not scored. Run: (train evaluate .*? --tta)")
    for pattern in ("*validation*", "thresholds*", "calibration*"):
        for file in world.run.glob(pattern):
            file.unlink()
    call(*world.on_run("evaluate"))
    _follow_page(
        world,
        "No thresholds were chosen. Run: (train evaluate .*? --split validation), then: (train evaluate --run run)",
    )


def test_the_page_asks_for_the_cache_and_for_a_started_run(world: World, monkeypatch: Any) -> None:
    monkeypatch.chdir(world.folder)
    (world.run / "log.csv").unlink()
    write_report(world.run, None)
    page = (world.run / "report.html").read_text("utf-8")
    assert "The run has no log yet. Run: train run" in page
    found = re.search("The cache is needed to show slices. Run: (train report .*? --cache CACHE)", page)
    assert found
    call(*advised(found[1].replace("CACHE", str(world.cache))))
    assert "The cache is needed to show slices" not in (world.run / "report.html").read_text("utf-8")


def test_a_cache_that_has_moved_is_given_by_its_new_path(world: World) -> None:
    moved = world.cache.rename(world.folder / "moved.zarr")
    try:
        follow(
            Case(
                world.on_run("evaluate"),
                "give its new path with (--cache)",
                lambda m: [world.on_run("evaluate", m[1], moved)],
            ),
            train,
        )
    finally:
        moved.rename(world.cache)


@pytest.mark.parametrize("kind", ["run", "head"])
def test_the_command_of_the_page_repeats_the_run(kind: str, world: World, heads: Path, monkeypatch: Any) -> None:
    """It uses folder names, for folders next to each other; the weights are bit-identical."""
    run = {"run": world.run, "head": Path(shutil.copytree(heads / "head", world.folder / "head"))}[kind]
    write_report(run, None)
    found = re.search(r">(train (?:run|series) [^<]*? --out RUN[^<]*)<", (run / "report.html").read_text("utf-8"))
    assert found
    words = shlex.split(html.unescape(found[1]).replace("\\\n", " "))[1:]
    monkeypatch.chdir(world.folder)
    for name, place in (("cache.zarr", world.cache), ("base", heads / "base")):
        (world.folder / name).symlink_to(place)
    for job in ("run", "series"):
        monkeypatch.setattr(f"training.{job}.job.finish", lambda *_: {"weighted_log_loss": 0.5})
    monkeypatch.setattr("training.cli.bodies.run._print_scores", lambda _: None)
    call(*words, *CPU, *(["--input-threads", 0] if kind == "run" else []))
    assert (world.folder / "RUN" / "weights.safetensors").read_bytes() == (run / "weights.safetensors").read_bytes()
