"""The section of the report that compares all scored sets, and predictions with and without TTA."""

from training.report import page
from training.report.page import Section
from training.report.scores import SCORES, UNDEFINED, not_scored, set_words, with_interval
from training.scores.compare import Contestant, compare
from training.scores.headline import headline
from training.scores.results import Results
from training.words import counted

SETS = {
    "validation": "validation",
    "test": "test",
    "external": "external",
    "validation_tta": "validation, TTA",
    "test_tta": "test, TTA",
    "external_tta": "external, TTA",
}
CHANGED = ("log_loss", "roc_auc", "average_precision", "brier")


def other_sets(results: Results) -> Section:
    """Return the section with the scores of every set, validation, test and external, also with TTA."""
    rows = []
    for name, content in results.scores.items():
        spans = content.get("intervals", {})
        main = headline(content)
        rows.append(
            [
                SETS[name],
                content.get("source", {}).get("dataset", UNDEFINED),
                f"{main.n:,}",
                f"{content['bootstrap']['patients']:,}" if "bootstrap" in content else UNDEFINED,
                with_interval(content["weighted_log_loss"], spans.get("weighted_log_loss"), 4),
                with_interval(main.scores.get("roc_auc"), main.spans.get("roc_auc")),
                with_interval(main.scores.get("average_precision"), main.spans.get("average_precision")),
                with_interval(content["macro"]["f1"], spans.get("macro", {}).get("f1")),
            ]
        )
    if not rows:
        return not_scored(results, "Sets and TTA")
    ranked = [f"ROC AUC {main.words}", f"average precision {main.words}"]
    head = ["set", "source", "slices", "patients", "weighted log loss", *ranked, "macro F1 at 0.5"]
    return Section("Sets and TTA", [page.table("Table 7. All scored sets.", head, rows), *_notes(results)])


def _notes(results: Results) -> list[str]:
    notes = []
    if "external" in results.scores:
        source = results.scores["external"].get("source", {})
        excluded = source.get("left_out", {"patients": 0, "slices": 0})
        words = (
            f"The external set is from another cache than the run's, commit {source.get('commit', '?')}: all its "
            "labelled slices except those of patients who are in training or validation, or who share a slice with the "
            f"run's cache: {counted(excluded['patients'], 'patient')} with {counted(excluded['slices'], 'slice')} "
            "(external_left_out.csv)."
        )
        notes.append(page.paragraph(words))
    both = [name for name in ("test", "validation") if {name, f"{name}_tta"} <= results.predictions.keys()]
    if both:
        return [*notes, _tta_table(results, both[0]), *_views(results, f"{both[0]}_tta")]
    subset = " --split validation" if results.shown == "validation" else ""
    words = f"TTA was not scored. Run: train evaluate --run {results.name}{subset} --tta"
    return [*notes, page.paragraph(words, "lead")]


def _views(results: Results, name: str) -> list[str]:
    """Return a paragraph with the score of each TTA view alone, since a poor view can make the mean worse."""
    views = results.scores.get(name, {}).get("views")
    if not views:
        return []
    each = ", ".join(f"{view} {UNDEFINED if loss is None else f'{loss:.4f}'}" for view, loss in views.items())
    return [page.paragraph(f"Weighted log loss of each view alone on {set_words(name)}: {each}.")]


def _tta_table(results: Results, name: str) -> str:
    plain, tta = results.predictions[name], results.predictions[f"{name}_tta"]
    weights = tuple(results.settings.get("data", {}).get("class_weights") or [1.0] * len(plain.classes))
    table = compare([Contestant("plain", plain, weights), Contestant("TTA", tta, weights)])
    lines = {(of["score"], of["class"]): of for of in table.to_dict("records")}

    def cell(score: str, label: str) -> str:
        of = lines[score, label]
        if of["difference"] != of["difference"]:
            return UNDEFINED
        span = f"\n{signed(of['low'])} to {signed(of['high'])}" if of["low"] == of["low"] else ""
        return f"{signed(of['difference'])}{span}"

    rows = [[label, *(cell(score, label) for score in CHANGED)] for label in plain.classes]
    rows.append(["all, weighted", cell("weighted_log_loss", "all"), *[""] * (len(CHANGED) - 1)])
    caption = (
        f"Table 8. Effect of TTA on {set_words(name)}: score with TTA minus score without, on the same slices. In "
        "small print: 95 % intervals by paired bootstrap over patients. Lower is better for log loss and Brier score, "
        "higher for the others."
    )
    return page.table(caption, ["class", *(SCORES[score] for score in CHANGED)], rows)


def signed(value: float) -> str:
    """Return a difference as text, with its sign and four decimals; zero has no sign."""
    text = f"{value:+.4f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text[1:]
