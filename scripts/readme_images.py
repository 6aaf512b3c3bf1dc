"""Make the images in README from a run's report: python scripts/readme_images.py demo/series (Chromium, Pillow)."""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

FOLDER = Path(__file__).parent.parent / "docs" / "images"
WIDTH_PX, MOST_PX, MOST_BYTES = 1240, 4000, 300_000
# Name of the image -> the parts of the page that it shows.
PICTURES = {
    "report": ("header", "#summary", "#scores", "#baselines"),
    "true_positives": ("#true-positives",),
}


def main(run: Path) -> None:
    """Write the images, each at most 300 KB."""
    FOLDER.mkdir(exist_ok=True)
    page = (run / "report.html").read_text(encoding="utf-8")
    for name, parts in PICTURES.items():
        hidden = "main > :not(" + "):not(".join(parts) + ") { display: none } nav { display: none !important }"
        file = FOLDER / f"{name}.png"
        shown = page.replace("</head>", f"<style>{hidden} main {{ padding: 1rem }}</style></head>")
        picture = screenshot(shown).convert("RGB")
        picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)
        picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)  # a method that keeps rare colours
        assert file.stat().st_size <= MOST_BYTES, f"{file}: {file.stat().st_size} bytes"
        print(f"{file.relative_to(FOLDER.parent.parent)}: {file.stat().st_size // 1000} KB")


def screenshot(page: str) -> Image.Image:
    """Return the page as rendered by Chromium, without the empty space below it."""
    with tempfile.TemporaryDirectory() as folder:
        html, png = Path(folder) / "page.html", Path(folder) / "page.png"
        html.write_text(page, encoding="utf-8")
        size = f"--window-size={WIDTH_PX},{MOST_PX}"
        command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={png}", size]
        subprocess.run([*command, html.as_uri()], check=True, capture_output=True, timeout=120)
        picture = Image.open(png).convert("RGB")
    used = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    assert used is not None
    return picture.crop((0, 0, WIDTH_PX, min(used[3] + 16, MOST_PX)))


main(Path(sys.argv[1]))
