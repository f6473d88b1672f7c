"""CSVs and label maps: what is read, and how every kind of bad row is named."""

import csv

import numpy as np
import pytest

from nlnet_d2.data.datasets import ava_files
from nlnet_d2.data.datasets.ava_files import (
    AvaTable,
    frame_keys,
    read_ava_csv,
    read_frames,
    second_text,
    write_detections,
)
from nlnet_d2.data.datasets.label_map import LabelMap, read_label_map, write_label_map
from nlnet_d2.data.errors import DataError

GOOD = "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1"


def written(folder, *lines: str, name: str = "rows.csv"):
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_annotations(tmp_path):
    table = read_ava_csv(
        written(tmp_path, GOOD, GOOD.replace(",80,1", ",12,1"), "x,0903.5,0,0,1,1,,7", "-5KQ66BBWC4,0903")
    )
    assert table.videos == ["-5KQ66BBWC4", "x"]
    assert table.video.tolist() == [0, 1, 0]
    assert table.second.tolist() == [902, 903.5, 903]
    np.testing.assert_array_equal(table.box[:2], [[0.077, 0.151, 0.283, 0.811], [0, 0, 1, 1]])
    assert np.isnan(table.box[2]).all()
    assert table.row_box.tolist() == [0, 0, 1, 2], "consecutive rows of one box share it"
    assert table.action.tolist() == [80, 12, -1, -1]
    assert table.score.tolist() == [1, 1, 1, 1], "the person's id is no score"
    assert table.line.tolist() == [1, 2, 3, 4]


def test_detections(tmp_path):
    table = read_ava_csv(
        written(tmp_path, "v,902,0.1,0.2,0.3,0.4,80,0.996382", "v,902,0.1,0.2,0.3,0.4,,0.5"), True
    )
    assert table.score.tolist() == [0.996382, 0.5]
    assert table.action.tolist() == [80, -1]


def test_detections_without_a_score_count_as_certain(tmp_path):
    assert read_ava_csv(written(tmp_path, "v,902,0.1,0.2,0.3,0.4,80"), scored=True).score.tolist() == [1]


def test_empty_file(tmp_path):
    table = read_ava_csv(written(tmp_path))
    assert (len(table.box), len(table.action), table.videos) == (0, 0, [])


def test_blank_lines_and_windows_line_ends(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(f"{GOOD}\r\n\r\n{GOOD}\r\n".encode())
    table = read_ava_csv(path)
    assert table.line.tolist() == [1, 3]
    assert table.videos == ["-5KQ66BBWC4"]


@pytest.mark.parametrize("name", ["ünï", "日本", '"a, b"', '"plain"', '" ""x"" "'])
def test_names_of_videos(name, tmp_path):
    """They do not depend on how the file is parsed: all at once, or, for the row of two columns, by lines."""
    rows = [f"{name},1,0.1,0.2,0.3,0.4,80,1", "v,1,0.1,0.2,0.3,0.4,80,1"]
    expected = [next(csv.reader([name]))[0], "v"]
    for more in ([], ["v,2"]):
        path = tmp_path / "rows.csv"
        path.write_text("\n".join(rows + more), encoding="utf-8-sig")  # with a byte order mark
        assert read_ava_csv(path).videos == expected


def test_lines_are_counted_over_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ava_files, "_CHUNK", 4)
    lines = [GOOD] * 10
    lines[6] = GOOD.replace("0.811", "0.911")
    table = read_ava_csv(written(tmp_path, *lines))
    assert table.line.tolist() == list(range(1, 11))
    assert table.box[table.row_box, 3].tolist() == [0.811] * 6 + [0.911] + [0.811] * 3
    lines[9] = "v,x"
    with pytest.raises(DataError, match="rows.csv:10"):
        read_ava_csv(written(tmp_path, *lines))


BAD = {
    "video_id,timestamp,x1,y1,x2,y2,action,person": "could not convert",
    "v,902,0.1,0.2,0.3": "expected 8 columns.*5 columns",
    "v,902,0.1,0.2,0.3,0.4,80,1,2": "9 columns",
    "v,902,10,20,30,40,80,1": "coordinates in 0..1: shares of the frame, not pixels",
    "v,902,0.1,0.2,0.3,1.1,80,1": "coordinates",
    "v,902,-0.1,0.2,0.3,0.4,80,1": "coordinates",
    "v,902,nan,0.2,0.3,0.4,80,1": "coordinates",
    "v,902,nan,nan,nan,nan,80,1": "coordinates",
    "v,902,0.1,,0.3,0.4,80,1": "could not convert",
    "v,-1,0.1,0.2,0.3,0.4,80,1": "second: expected 0 to 999999",
    "v,0.1,0.2,0.3,0.4,80,1": "coordinates",
    "v,902,0.1,0.2,0.3,0.4,0,1": "action: expected an integer from 1",
    "v,902,0.1,0.2,0.3,0.4,-3,1": "action",
    "v,902,0.1,0.2,0.3,0.4,1.5,1": "action",
    "v,902,0.1,0.2,0.3,0.4,run,1": "could not convert",
    ",902,0.1,0.2,0.3,0.4,1,1": "name must have",
}


@pytest.mark.parametrize("row", BAD)
def test_bad_row(row, tmp_path):
    with pytest.raises(DataError, match=BAD[row]) as error:
        read_ava_csv(written(tmp_path, GOOD, row))
    assert str(error.value).startswith(f"{tmp_path / 'rows.csv'}:2: ")


@pytest.mark.parametrize("score", ["nan", "inf", "", "high"])
def test_bad_score(score, tmp_path):
    with pytest.raises(DataError, match=r"rows.csv:1: .*(finite score|could not convert)"):
        read_ava_csv(written(tmp_path, f"v,902,0.1,0.2,0.3,0.4,80,{score}"), scored=True)


def test_all_bad_rows_can_be_collected(tmp_path):
    findings = []
    table = read_ava_csv(written(tmp_path, GOOD, *BAD, GOOD), findings=findings)
    assert [str(f).split(":")[1] for f in sorted(findings, key=lambda f: int(f.file.split(":")[1]))] == [
        str(i + 2) for i in range(len(BAD))
    ]
    assert table.line.tolist() == [1, len(BAD) + 2]


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="nowhere.csv"):
        read_ava_csv(tmp_path / "nowhere.csv")


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\x80\x04\x95\xff\xfe")
    with pytest.raises(DataError, match="readable text file"):
        read_ava_csv(path)


def test_frames(tmp_path):
    table = read_frames(written(tmp_path, "0f39OWEqJ24,0903", "0f39OWEqJ24,0904"))
    assert table.second.tolist() == [903, 904]
    with pytest.raises(DataError, match="rows.csv:1: .*2 columns"):
        read_frames(written(tmp_path, GOOD))


def test_frame_keys_agree_over_files(tmp_path):
    first = read_ava_csv(written(tmp_path, "a,0902,0,0,1,1,1,0", "b,902,0,0,1,1,1,0"))
    second = read_ava_csv(
        written(tmp_path, "b,0902.0,0,0,1,1,1,0", "b,902.5,0,0,1,1,1,0", "c,902,0,0,1,1,1,0")
    )
    a, b = frame_keys(first, second)
    assert a[1] == b[0]
    assert len({*a.tolist(), *b.tolist()}) == 4


def test_second_text():
    assert [second_text(s) for s in (7.0, 902.0, 12.48, 1 / 3)] == ["0007", "0902", "12.48", "0.333333"]


def test_written_detections_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    box = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.0, 1.0]])
    table = AvaTable.from_scores(["b", "a, 1"], [902, 12.5], box, rng.random((2, 3)), [1, 4, 80])
    write_detections(tmp_path / "d.csv", table)
    again = read_ava_csv(tmp_path / "d.csv", scored=True)
    assert [again.videos[v] for v in again.video] == ["b", "a, 1"]
    assert again.second.tolist() == [902, 12.5]
    np.testing.assert_allclose(again.box, box, atol=1e-6)
    assert again.action.tolist() == [1, 4, 80] * 2
    np.testing.assert_allclose(again.score, table.score, rtol=1e-5)
    assert (tmp_path / "d.csv").read_text().startswith("b,0902,0.100000,0.200000,0.300000,0.400000,1,")


@pytest.mark.parametrize("name", ['"1"', 'a, "1"', "日本"])
def test_written_names_are_read_back(name, tmp_path):
    write_detections(tmp_path / "d.csv", AvaTable.from_scores([name], [1], np.zeros((1, 4)), [[1.0]], [1]))
    assert read_ava_csv(tmp_path / "d.csv", scored=True).videos == [name]


# --- label maps ---

ITEM = 'item {\n  name: "bend/bow (at the waist)"\n  id: 1\n}\nitem {\n  name: "crawl"\n  id: 2\n}\n'
LABEL = 'label {\n  name: "sit"\n  label_id: 11\n  label_type: PERSON_MOVEMENT\n}\n'


def test_both_styles(tmp_path):
    both = read_label_map(written(tmp_path, LABEL + ITEM))
    assert both.names == {1: "bend/bow (at the waist)", 2: "crawl", 11: "sit"}
    assert list(both.names) == [1, 2, 11]
    assert both.groups == {11: "PERSON_MOVEMENT"}


@pytest.mark.parametrize(
    "text",
    [
        'item { name: "run" id: 3 }',
        'item{name:"run"id:3}',
        '# classes\nitem {\n\tid: 3\n\tname: "run"\n}',
        'item: {\r\n name: "run"\r\n id: 3\r\n}',
        '\ufeffitem { name: "run" id: 3 }',  # the byte order mark of Windows' editors
    ],
)
def test_lay_out_does_not_matter(text, tmp_path):
    """The public readers take lines that begin with two spaces, and miss all others silently."""
    assert read_label_map(written(tmp_path, text)).names == {3: "run"}


def test_braces_and_marks_in_names(tmp_path):
    name = "a } strange { name: #1"
    assert read_label_map(written(tmp_path, f'item {{ name: "{name}" id: 1 }}')).names == {1: name}


@pytest.mark.parametrize(
    "text, line, message",
    [
        (ITEM + "item {\n  id: 7\n}", 9, "expected name"),
        (ITEM + 'item { name: "run" }', 9, "expected name"),
        (ITEM + 'item { name: "run" id: 0 }', 9, "id from 1"),
        (ITEM + 'item { name: "run" id: two }', 9, "id from 1"),
        (ITEM + 'item { name: "run" id: 2 }', 9, "already 'crawl'"),
        (ITEM + 'item { name: "run" id: 3', 9, "a block of a label map"),
        (ITEM + "run,3", 9, "a block of a label map"),
        (ITEM + 'item { name: "run" id: 3 twice }', 9, "twice"),
        ("", 1, "got none"),
    ],
)
def test_bad_label_map(text, line, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        read_label_map(written(tmp_path, text))
    assert str(error.value).startswith(f"{tmp_path / 'rows.csv'}:{line}: ")


def test_missing_label_map(tmp_path):
    with pytest.raises(DataError, match="nowhere.pbtxt"):
        read_label_map(tmp_path / "nowhere.pbtxt")


def test_written_label_map_is_read_back(tmp_path):
    label_map = LabelMap({1: "run", 5: "sit (on a chair)"}, {5: "PERSON_MOVEMENT"})
    write_label_map(tmp_path / "map.pbtxt", label_map)
    assert read_label_map(tmp_path / "map.pbtxt") == label_map
