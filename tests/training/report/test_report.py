"""Test that the report agrees with the run's files, and is self-contained."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.bare_figures import bare_figures
from testkit.fake_cache import write_cache
from testkit.fake_run import write_run
from training.data.cache import Cache, open_cache
from training.errors import RunError
from training.report.model_card import model_card
from training.report.report import training, write_report
from training.report.slices import choose_slices, choose_true_positives, most_confident_mistakes
from training.scores.results import read_results


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(write_cache(tmp_path_factory.mktemp("cache") / "cache.zarr", patients=30, slices=6).path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Cache) -> Path:
    """A run with its report, not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    write_run(path, cache)
    write_report(path, cache)
    return path


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def test_the_report_has_the_scores_of_the_run(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    scores = read_results(finished).scores["test"]
    assert f"<b>{scores['weighted_log_loss']:.4f}</b>" in text
    for name, of in scores["classes"].items():
        span = scores["intervals"]["classes"][name]["roc_auc"]
        small = f"<small>{span[0]:.3f} to {span[1]:.3f}</small>" if span else ""
        row = f"<td>{name}</td><td>{of['positives']:,} / {of['n']:,}</td><td>{of['roc_auc']:.3f}{small}</td>"
        assert row in text


def test_the_baselines_are_position_alone_and_the_training_shares(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    table = text[text.index("Baselines</h") :]
    rows = [table.index(words) for words in ("this run", "position alone", "shares of the training slices")]
    assert rows == sorted(rows)


def test_the_report_loads_nothing_from_a_network(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_names_from_the_data_are_escaped_on_page_and_card(run: Path) -> None:
    (run / "digests.json").unlink(missing_ok=True)
    evil = "<img src=x onerror=alert(1)>"
    settings = json.loads((run / "settings.json").read_text())
    settings["data"]["windows"][0][0] = settings["data"]["commit"] = evil
    (run / "settings.json").write_text(json.dumps(settings))
    predictions = run / "predictions_test.csv"
    known = pd.read_csv(predictions, dtype={"patient_id": str})
    known.assign(image_id=known["image_id"] + evil).to_csv(predictions, index=False)
    page = write_report(run, None).read_text()
    card = (run / "model_card.md").read_text()
    for text in (page, card):
        assert "<img src=x" not in text
        assert "&lt;img src=x" in text


def test_confusion_adds_up(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    known = read_results(finished).predictions["test"]
    table = text[text.index("Table 4.") :]
    for k, name in enumerate(known.classes):
        for rule, key in (("Youden", "classes"), ("F1", "classes_f1")):
            cells = re.search(rf"<td>{name}</td><td>{rule}</td>((?:<td>[^<]*</td>){{5}})", table)
            assert cells
            shown, *counts = re.findall(r"<td>([^<]*)</td>", cells[1])
            threshold = json.loads((finished / "thresholds.json").read_text())["levels"]["slice"][key][name]
            assert shown == f"{threshold:.3g}"
            assert sum(map(int, counts)) == len(known)
            hits = (known.probabilities[:, k] >= threshold) & (known.labels[:, k] == 1)
            assert [int(counts[0]), int(counts[0]) + int(counts[1])] == [hits.sum(), known.labels[:, k].sum()]


def test_model_card_has_the_scores_and_both_checklists(finished: Path) -> None:
    text = (finished / "model_card.md").read_text()
    scores = read_results(finished).scores["test"]
    assert f"| any | {scores['classes']['any']['positives']}" in text
    assert "| CLAIM | TRIPOD+AI |" in text
    rows = re.findall(r"^\| ([0-9, -]*) \| ([0-9, -]+) \|", text, re.MULTILINE)
    for column, last in enumerate((44, 27)):
        assert set().union(*(items(row[column]) for row in rows)) == set(range(1, last + 1))


def items(text: str) -> set[int]:
    """Return the item numbers in a checklist cell such as 1, 2, 14-18."""
    spans = [part.split("-") for part in text.split(",") if part.strip()]
    return {item for span in spans for item in range(int(span[0]), int(span[-1]) + 1)}


def test_the_report_shows_validation_if_test_has_not_been_scored(run: Path) -> None:
    for file in ("split.csv", "log.csv", "thresholds.json", "predictions_test.csv"):
        (run / file).unlink()
    with bare_figures():
        text = write_report(run, None).read_text()
    assert "Scores on the validation set" in text
    assert "The run has no log yet." in text
    assert "The cache is needed to show slices." in text


def test_without_validation_the_last_epochs_weights_are_named(finished: Path) -> None:
    results = read_results(finished)
    without = replace(results, split=results.split[results.split["split"] != "validation"])
    for text in (model_card(without), str(training(without).blocks)):
        assert "the weights of the last epoch" in text
        assert "lowest validation log loss" not in text
    assert "the weights with the lowest validation log loss" in model_card(results)


def test_a_run_without_results_and_cache_has_a_report(run: Path) -> None:
    for file in run.iterdir():
        if file.name != "settings.json":
            file.unlink()
    text = write_report(run, None).read_text()
    assert "The run has no scores yet." in text
    assert "The run has no log yet." in text


def test_no_run_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run, it has no settings"):
        write_report(tmp_path, None)


def test_damaged_scores_are_the_users_error(run: Path) -> None:
    (run / "scores_test.json").write_text("{")
    with pytest.raises(RunError, match=r"scores_test\.json: cannot be read"):
        write_report(run, None)


def test_the_same_run_gives_the_same_bytes(finished: Path, tmp_path: Path, cache: Cache) -> None:
    other = shutil.copytree(finished, tmp_path / "run")
    assert (finished / "report.html").read_bytes() == write_report(other, cache).read_bytes()


def test_example_slices_show_every_finding(finished: Path) -> None:
    known = read_results(finished).predictions["test"]
    chosen = choose_slices(known, 12)
    assert len(set(chosen)) == len(chosen) <= 12
    shown = known.labels[chosen]
    assert ((shown == 1).any(axis=0) == (known.labels == 1).any(axis=0)).all()
    assert (shown == 0).all(axis=1).any()


def test_example_slices_do_not_depend_on_the_order_of_lines(finished: Path) -> None:
    known = read_results(finished).predictions["test"]
    order = np.random.default_rng(0).permutation(len(known))
    shuffled = type(known)(
        known.slices.iloc[order].reset_index(drop=True), known.classes, known.labels[order], known.probabilities[order]
    )
    names = known.slices["image_id"].to_numpy()
    assert list(names[choose_slices(known, 12)]) == list(names[order][choose_slices(shuffled, 12)])


def test_true_positives_are_shown_for_every_class(finished: Path) -> None:
    known = read_results(finished).predictions["test"]
    thresholds = np.quantile(known.probabilities, 0.5, axis=0)
    found = choose_true_positives(known, thresholds, 10)
    assert all(known.labels[line, k] == 1 and known.probabilities[line, k] >= thresholds[k] for line, k in found)
    assert len({line for line, _ in found}) == len(found)
    assert {known.classes[k] for _, k in found[:5]} == set(known.classes) - {"any"}
    assert choose_true_positives(known, np.full(len(known.classes), 1.1), 10) == []
    assert "true positive ·" in (finished / "report.html").read_text()


def test_mistakes_are_the_most_confident_errors(finished: Path) -> None:
    known = read_results(finished).predictions["test"]
    error = np.abs(known.probabilities - known.labels)
    found = most_confident_mistakes(known, 12)
    assert found
    assert all(error[line, k] > 0.5 for line, k in found)
    assert len({line for line, _ in found}) == len(found)
    line, k = found[0]
    assert error[line, k] == error[:, k].max()


def test_the_report_has_tta_and_an_external_set_with_their_differences(run: Path, cache: Cache) -> None:
    for name in ("test_tta", "external"):
        for file, suffix in (("predictions", "csv"), ("scores", "json")):
            shutil.copy(run / f"{file}_test.{suffix}", run / f"{file}_{name}.{suffix}")
    scores = json.loads((run / "scores_external.json").read_text())
    source = {"dataset": "elsewhere", "commit": "c0ffee"}
    (run / "scores_external.json").write_text(json.dumps(scores | {"source": source}))
    with bare_figures():
        text = write_report(run, cache).read_text()
    assert "<td>external, from elsewhere</td>" in text
    assert "commit c0ffee" in text
    changed = text[text.index("Table 8.") : text.index('id="training"')]
    assert "<td>0.0000</td>" in changed  # no patient differs, so there is no interval
    assert "+0.0000" not in changed
    assert "TTA was not scored" not in text
