"""The model card of a run in Markdown, with the items of CLAIM and TRIPOD+AI that the run can answer."""

from pathlib import Path
from typing import Any

from training.data.linked import describe
from training.run.digests import write_atomically
from training.scores.results import Results
from training.series.mix import read_shares

AUTHORS = "*to be filled in by the authors*"


def write_model_card(results: Results) -> Path:
    """Write run/model_card.md and return its path.

    Source: Mitchell et al., "Model cards for model reporting", FAT* 2019; Tejani et al., "CLAIM: 2024 update",
    Radiology: Artificial Intelligence 6 (2024); Collins et al., "TRIPOD+AI statement", BMJ 385 (2024).
    """
    path = results.path / "model_card.md"
    text = model_card(results)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def model_card(results: Results) -> str:
    """Return the text of the card."""
    config, data = results.settings.get("config", {}), results.settings.get("data", {})
    windows = ", ".join(f"{name} ({level:g}, {width:g})" for name, level, width in data.get("windows", []))
    rows = "\n".join(f"| {claim} | {tripod} | {item} | {answer} |" for claim, tripod, item, answer in _answers(results))
    card = f"""# Model card: {config.get("model", "model")}, run {results.name}

This is research software, not a medical device: it must not be used to diagnose or treat anyone.

## Model

- Input: {_input(results)}.
- Windows (level, width in HU): {windows}.
- Output: independent probabilities of {", ".join(data.get("classes", []))}; several can be high.
- Trained on commit `{data.get("commit", "?")}` of a cache with seed {config.get("seed", "?")}, from
  {config.get("weights", "?")} weights: {results.settings.get("environment", {}).get("weights", "not recorded")}.

## Intended use

Comparing methods and reproducing results. Not for clinical decisions, and not for other body parts, other modalities or
contrast studies unless the training data included them.

## Performance

{_performance(results)}

## Reporting checklist

Item numbers of CLAIM (2024 update) and TRIPOD+AI (2024). The authors fill in what the run does not record.

| CLAIM | TRIPOD+AI | item | answer |
|---|---|---|---|
{rows}
"""
    return card.replace("<", "&lt;")  # names come from the data, and Markdown passes HTML through


def _input(results: Results) -> str:
    config = results.settings.get("config", {})
    of_slice = f"{config.get('size_px', '?')} px, {_position(config)}, {context_words(config)}"
    if not has_head(config):
        return f"one axial head-CT slice of {of_slice}"
    shares = ", ".join(f"{name} {share:.2f}" for name, share in _shares(results).items()) or "not chosen yet"
    return (
        f"all slices of an axial head-CT series, from foot to head. A slice model takes each slice ({of_slice}); a "
        f"head over the series ({config['head']}) reads its features and corrects its logits\n"
        f"- Share of the correction used for each class, chosen on validation: {shares}"
    )


def has_head(config: dict[str, Any]) -> bool:
    """Return whether the settings are those of a head over series."""
    return config.get("head", "none") != "none"


def _shares(results: Results) -> dict[str, float]:
    if not (results.path / "mix.json").exists():
        return {}
    return read_shares(results.path, results.settings["data"]["classes"])


def _position(config: dict[str, Any]) -> str:
    return "with its position within the series" if config.get("position", True) else "without its position"


def context_words(config: dict[str, Any]) -> str:
    """Return a phrase for the neighbouring slices that the network sees."""
    count, windows = config.get("context", 0), config.get("context_windows", "all")
    if not count:
        return "without its neighbours"
    return f"with {count} {'slice' if count == 1 else 'slices'} on each side ({windows} windows)"


def _performance(results: Results) -> str:
    if (name := results.shown) is None:
        return "Not scored yet."
    content = results.scores[name]
    spans = content.get("intervals", {}).get("classes", {})
    lines = [
        f"On the {name} set, {results.level} by {results.level}, with 95 % intervals by bootstrap over patients.",
        "",
        "| class | positive / all | ROC AUC | average precision | log loss |",
        "|---|---|---|---|---|",
    ]
    for label, of in content["classes"].items():
        cells = [_value(of[key], spans.get(label, {}).get(key)) for key in ("roc_auc", "average_precision", "log_loss")]
        lines.append(f"| {label} | {of['positives']:,} / {of['n']:,} | {' | '.join(cells)} |")
    span = content.get("intervals", {}).get("weighted_log_loss")
    lines += ["", f"Weighted log loss: {_value(content['weighted_log_loss'], span)}."]
    for key, rule in (("at_threshold", "Youden's index"), ("at_f1_threshold", "F1")):
        if key in content:
            f1 = _value(content[key]["macro"]["f1"], content[key]["intervals"]["macro"]["f1"])
            lines += ["", f"Mean F1 over the classes at the thresholds chosen on validation by {rule}: {f1}."]
    return "\n".join(lines)


def _value(value: float | None, span: list[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" ({span[0]:.3f} to {span[1]:.3f})" if span else "")


def _start(results: Results) -> str:
    """Return a phrase for the weights from which training started."""
    config, environment = results.settings.get("config", {}), results.settings.get("environment", {})
    origin = environment.get("weights", "not recorded")
    start = f"{config.get('model', '?')}, {config.get('weights', '?')} weights ({origin})"
    if not has_head(config):
        return start
    return f"a frozen slice model, trained from {start}; a head over its features ({config['head']}), initially zero"


def kept_weights(results: Results) -> str:
    """Return a phrase for the epoch whose weights the run keeps."""
    if len(results.split) and not (results.split["split"] == "validation").any():
        return "the weights of the last epoch"
    return "the weights with the lowest validation log loss"


def _scope(config: dict[str, Any]) -> str:
    return f"each slice within its series, by a head ({config['head']})" if has_head(config) else "slice by slice"


def _answers(results: Results) -> list[tuple[str, str, str, str]]:
    config, data = results.settings.get("config", {}), results.settings.get("data", {})
    environment = results.settings.get("environment", {})
    subsets = results.split["split"].value_counts().to_dict()
    commit = data.get("commit", "?")
    start, scope = _start(results), _scope(config)
    patients = ", ".join(f"{count:,} {subset}" for subset, count in subsets.items()) or AUTHORS
    external = "scored, see the report" if "external" in results.scores else "none"
    versions = ", ".join(f"{name} {version}" for name, version in environment.items() if name in ("python", "torch"))
    evaluations = len(results.looks)
    windows = ", ".join(name for name, *_ in data.get("windows", [])) or "?"
    linked = "; ".join(describe(results.linked, len(results.split))) or "no two patients share a slice"
    return [
        ("1, 2", "1, 2", "title, abstract", AUTHORS),
        ("3, 4, 6", "3, 4", "background, objectives, study goal", AUTHORS),
        ("5, 7, 8", "5, 6", "source of data, eligibility", f"cache commit `{commit}`; otherwise {AUTHORS}"),
        ("9-11", "7, 9", "preprocessing, de-identification", f"HU, windows {windows}, antialiased "
         "bilinear resize, 8 bits; patient ids hashed by the pipeline unless the catalog keeps them"),
        ("12", "11", "missing data", "slices without a label for a class are left out of its loss and scores"),
        ("13", "5", "image acquisition", AUTHORS),
        ("14-18", "8", "reference standard, annotators, variability", AUTHORS),
        ("19, 20", "12, 16", "partitions and their level", f"by patient, stratified by findings: {patients} "
         f"patients; {linked}"),
        ("21", "10", "sample size", AUTHORS),
        ("22, 24", "12, 22", "model, initial parameters", start),
        ("23", "18", "software", versions or AUTHORS),
        ("25, 26", "12, 21", "training, choice of the final model", f"at most {config.get('epochs', '?')} epochs, "
         f"{kept_weights(results)}; all settings in `settings.json`"),
        ("", "13", "class imbalance", "loss weights from the cache: "
         + ", ".join(f"{weight:g}" for weight in data.get("class_weights", []))),
        ("27", "12", "ensembling", "none; TTA if the report says so"),
        ("28, 29", "12", "measures and their uncertainty", "log loss, ROC AUC, average precision, Brier score, "
         "calibration error, rates at thresholds chosen on validation by Youden's index and by F1; 95 % intervals by "
         "bootstrap over patients"),
        ("30", "14", "robustness, fairness",
         "by slice position and series length; age, sex and scanner are not in the cache"),
        ("31", "15", "explanation, output", "integrated gradients of some slices; probabilities per class"),
        ("32", "23", "internal test", f"held-out patients; logged evaluations on test or external sets: {evaluations}"),
        ("33", "12, 23", "external test", external),
        ("34", "18", "registration", AUTHORS),
        ("35, 36", "20", "participants, demographics", f"{patients} patients; demographics {AUTHORS}"),
        ("37, 38", "23", "performance with uncertainty", "table above and `report.html`"),
        ("39", "23", "failure analysis", "`report.html`, section Mistakes"),
        ("40, 41", "24-27", "limitations, implications",
         f"predicts {scope}, {context_words(config)}; otherwise {AUTHORS}"),
        ("42, 43", "18", "protocol, availability", f"settings and split are in the run's folder; otherwise {AUTHORS}"),
        ("44", "17-19", "funding, ethics, patient involvement", AUTHORS),
    ]  # fmt: skip
