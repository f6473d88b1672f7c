"""The page about a run: everything is in it, and nothing is elsewhere."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from nlnet_d2.data.errors import DataError
from nlnet_d2.reporting import attention_section
from nlnet_d2.reporting.cards import choose_cards, data_url
from nlnet_d2.reporting.page import report
from nlnet_d2.reporting.results import Table
from nlnet_d2.reporting.run_folder import read_run
from nlnet_d2.reporting.sections import compare_all, read_results

VOID = {"meta", "link", "img", "br", "input"}


class Text(HTMLParser):
    """What can be read on a page without JavaScript, and what it loads; open elements must be closed."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.loaded = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.loaded += [value for key, value in attrs if key in ("src", "href", "xlink:href", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.loaded += [value for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(page) -> tuple[str, list[str]]:
    parser = Text()
    parser.feed(page.read_text())
    assert parser.open == []
    return re.sub(r"\s+", " ", " ".join(parser.text)), parser.loaded


@pytest.fixture(scope="module")
def page(coco_run, tmp_path_factory):
    return report(coco_run, tmp_path_factory.mktemp("page") / "report.html", attention=1)


def test_text_of_the_page(page, coco_run):
    text, _ = read(page)
    for expected in (
        "Results on tiny_val", "Boxes: COCO's numbers", "AR 100", "Boxes: per class", "disc",
        "Most frequent confusions", "Gallery", "best image", "missed", "nothing is there", "but the truth is",
        "How much attention depends on the query", "res4.1.after_add.0",
        "Losses", "Learning rate", "seconds per iteration, median 0.200",
        "Metrics of the last evaluation", "bbox/AP 40.0",
        "tiny_train", "12, 0 of them without objects",
        "Command", "pytest", "faster-coco-eval", "Starts (UTC)", "done", "BASE_LR: 0.01",
    ):  # fmt: skip
        assert expected in text, expected


def test_nothing_is_loaded_from_elsewhere(page):
    _, loaded = read(page)
    assert loaded
    assert all(target.startswith(("data:", "#")) for target in loaded)
    assert not re.search(r"@import|url\((?!#)", page.read_text())


def test_unknown_numbers_are_dashes(page):
    assert "bbox/AP-disc –" in read(page)[0]


def test_the_page_lands_in_the_folder(coco_run, copy):
    folder = copy(coco_run)
    assert report(folder, attention=0) == folder / "report.html"
    assert "Not drawn: it was not asked for" in read(folder / "report.html")[0]


def test_names_cannot_write_html(coco_run, copy):
    folder = copy(coco_run)
    folder = folder.rename(folder.with_name("<b>bold & sons"))
    assert "<h1>&lt;b&gt;bold &amp; sons</h1>" in report(folder, attention=0).read_text()


def test_actions(ava_run, tmp_path):
    text, _ = read(report(ava_run, tmp_path / "page.html", attention=1))
    for expected in ("Results on tiny_clips_val", "mAP PERSON_MOVEMENT", "carry", "slow.res4.0.after_add.0"):
        assert expected in text, expected


def test_blocks_outside_of_the_backbone_are_named(coco_run, tmp_path, monkeypatch):
    monkeypatch.setattr(attention_section, "what_is_not_drawn", lambda model: "Not drawn: those of heads.")
    assert "Not drawn: those of heads." in read(report(coco_run, tmp_path / "page.html", attention=1))[0]


def test_a_folder_with_next_to_nothing(coco_run, copy):
    folder = copy(coco_run)
    for path in (
        "model_final.pth",
        "metrics.json",
        "launches.jsonl",
        "inference/coco_instances_results.json",
    ):
        (folder / path).unlink()
    text, _ = read(report(folder))
    for expected in ("there are no detections", "no checkpoint is here", "nothing was trained", "log.txt"):
        assert expected in text, expected


def test_other_weights_than_the_config_says(coco_run, copy):
    folder = copy(coco_run)
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("FC_DIM: 32", "FC_DIM: 16", 1)
    )
    assert "Not drawn:" in read(report(folder))[0]


def test_no_run(tmp_path):
    with pytest.raises(DataError, match="OUTPUT_DIR"):
        report(tmp_path)


def test_cards(coco_run):
    (results,), _ = read_results(read_run(coco_run))
    cards = choose_cards(compare_all(results), results.classes)
    assert [(card.kind, card.name) for card in cards] == [
        *(("best", f"image {i}") for i in (0, 1, 2)),
        *(("worst", f"image {i}") for i in (2, 1)),
        ("missed", "image 2"),
        ("false", "image 1"),
        ("false", "image 2"),
    ]
    assert cards[0].text == "F1 1.00, 2 right with mean overlap 1.00"
    confused, nothing = cards[-2:]
    assert "90%, but the truth is" in confused.text
    assert "80%, but nothing is there: 5 x 4 at (0, 0)" in nothing.text
    assert all(card.truth.startswith("data:image/jpeg;base64,") for card in cards)


def test_a_high_picture_is_not_made_small():
    """That of the attention of many blocks: one could not read it."""
    encoded = data_url(np.zeros((900, 300, 3), np.uint8), width=400).partition("base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (300, 900)


def test_cells():
    table = Table("t", ["a", "b"], [["x", 1.25], ["y", None]], digits=1)
    assert [table.is_numeric(column) for column in (0, 1)] == [False, True]
    assert [table.show(v) for v in (None, float("nan"), 1.25, 3, "x")] == ["–", "–", "1.2", "3", "x"]
    assert Table("t", ["a"], [[np.pi]], digits=4).show(np.pi) == "3.1416"
