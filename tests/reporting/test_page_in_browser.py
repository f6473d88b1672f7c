"""The page in headless Chromium: it sorts, filters, shows something, and reports no error."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from nlnet_d2.reporting.page import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")


@pytest.fixture(scope="module")
def page(coco_run, tmp_path_factory):
    return report(coco_run, tmp_path_factory.mktemp("page") / "report.html", attention=1)


def browse(page, profile, *flags: str) -> subprocess.CompletedProcess:
    """Open the page; what it writes to its console is an error of the test."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "CONSOLE" not in ended.stderr
    return ended


def run_in_page(page, tmp_path, script: str, *flags: str):
    """What an expression gives, evaluated in the page when it is loaded."""
    changed = tmp_path / "changed.html"
    probe = f"<script>document.body.dataset.probe = JSON.stringify((() => {{ {script} }})());</script></body>"
    changed.write_text(page.read_text().replace("</body>", probe))
    dom = browse(changed, tmp_path / "profile", "--dump-dom", *flags).stdout
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found, "the script did not end"
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))


FIND_TABLE = """
const table = [...document.querySelectorAll("table")].find(
  t => t.parentNode.parentNode.querySelector("h3").textContent === TITLE);
const column = i => [...table.tBodies[0].rows].map(row => row.cells[i].textContent);
"""


def in_table(title: str) -> str:
    return FIND_TABLE.replace("TITLE", json.dumps(title))


@pytest.mark.parametrize("width", [1280, 420])
def test_something_is_shown(page, tmp_path, width):
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape[0] >= 1500
    assert pixels.std() > 10
    assert (pixels[1000:] < 128).any()  # also further down


def test_numbers_are_sorted(page, tmp_path):
    script = (
        in_table("Boxes: COCO's numbers")
        + """
        table.tHead.rows[0].cells[1].click(); const down = column(1);
        table.tHead.rows[0].cells[1].click(); return [down, column(1)];"""
    )
    down, up = run_in_page(page, tmp_path, script)
    known = [float(cell) for cell in down if cell != "–"]
    assert known == sorted(known, reverse=True)
    assert [float(cell) for cell in up if cell != "–"] == sorted(known)
    unknown = len(down) - len(known)
    assert unknown > 0
    assert down[-unknown:] == up[-unknown:] == ["–"] * unknown  # these come last either way


def test_words_are_sorted(page, tmp_path):
    script = (
        in_table("Boxes: per class")
        + """
        table.tHead.rows[0].cells[0].click(); table.tHead.rows[0].cells[0].click(); return column(0);"""
    )
    assert run_in_page(page, tmp_path, script) == ["box", "cross", "disc"]


def test_rows_are_filtered(page, tmp_path):
    script = (
        in_table("Boxes: COCO's numbers")
        + """
        const input = table.parentNode.parentNode.querySelector("input");
        input.value = "ap75"; input.dispatchEvent(new Event("input"));
        return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent);"""
    )
    assert run_in_page(page, tmp_path, script) == ["AP75"]


def test_cards_are_filtered(page, tmp_path):
    script = """
        const gallery = document.querySelector(".cards"), select = document.querySelector("select");
        const kinds = () => [...gallery.children].filter(card => !card.hidden).map(card => card.dataset.kind);
        select.value = "missed"; select.dispatchEvent(new Event("change")); const missed = kinds();
        const input = gallery.previousElementSibling;
        input.value = "no such class"; input.dispatchEvent(new Event("input"));
        return [missed, kinds()];"""
    missed, none = run_in_page(page, tmp_path, script)
    assert missed == ["missed"]
    assert none == []


def test_boxes_side_by_side_leave_no_gaps(page, tmp_path):
    """Those of a row end at one height, and the last row reaches as far as the others."""
    script = """
        return [...document.querySelectorAll(".parts")].map(parts => [...parts.children].map(child => {
          const box = child.getBoundingClientRect(); return [box.top, box.bottom, box.right]; }));"""
    sections = run_in_page(page, tmp_path, script, "--window-size=1280,1600")
    for boxes in filter(None, sections):
        ends = {(top, bottom) for top, bottom, _ in boxes}
        assert len(ends) == len({top for top, *_ in boxes})
        assert boxes[-1][2] == max(right for *_, right in boxes)
    assert any(len({top for top, *_ in boxes}) < len(boxes) for boxes in sections), "some stand side by side"


def test_a_phone_needs_no_sideways_scrolling(page, tmp_path):
    script = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth];"
    content, window = run_in_page(page, tmp_path, script, "--window-size=420,900")
    assert content <= window <= 500  # the narrowest that Chromium can be without a screen


def test_long_names_stay_in_their_boxes_on_a_phone(page, tmp_path):
    """Names of data sets and files have no spaces."""
    script = """
        document.body.style.width = "360px";
        const named = document.querySelectorAll("h1, h2, h3, b, .note, .numbers span, figcaption span, pre");
        for (const element of named) element.textContent = "validation_2024_".repeat(9);
        const boxes = [...document.querySelectorAll("header, section, .box, pre")];
        const tooWide = boxes.filter(box => box.scrollWidth > box.clientWidth);
        return [boxes.length, tooWide.map(box => `${box.tagName} ${box.className}`)];"""
    boxes, too_wide = run_in_page(page, tmp_path, script)
    assert boxes > 20
    assert too_wide == []


def test_without_javascript_no_dead_controls(page):
    """Controls are made by the script, so there are none where it does not run."""
    text = page.read_text().partition("<script>")[0]
    assert "<input" not in text
    assert "<select" not in text
