"""tools/prepare_ava.py: problems per video, the index, and mmaction2's boxes."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_videos import write_frames, write_video

from nlnet_d2.data import video_folder
from nlnet_d2.data.ava_check import check_ava, format_report
from nlnet_d2.data.datasets.ava import AvaSource, load_ava
from nlnet_d2.data.datasets.ava_files import read_ava_csv, write_people
from nlnet_d2.data.errors import DataError

SECONDS = [i / 30 for i in range(60)]


@pytest.fixture
def source(tmp_path) -> AvaSource:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mkv", SECONDS, g=10)
    write_frames(videos / "b", 60)
    (tmp_path / "labels.pbtxt").write_text('item { name: "run" id: 1 }')
    rows = ["a,0001,0.1,0.1,0.5,0.9,1,0", "b,0001,0.1,0.1,0.5,0.9,1,0", "b,0001,0.5,0.1,0.9,0.9,1,1"]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    return AvaSource(str(tmp_path / "rows.csv"), str(tmp_path / "labels.pbtxt"), str(videos))


def test_complete_data(source):
    videos, findings = check_ava(source)
    assert findings == []
    assert [(v.name, v.key_frames, v.acting, v.detected, v.readable) for v in videos] == [
        ("a", 1, 1, 0, True),
        ("b", 1, 2, 0, True),
    ]
    report = format_report(videos, findings)
    assert "64 x 48" in report
    assert report.endswith("2 videos, 2 key frames, no problems")


def test_every_problem_of_every_video(source, tmp_path):
    videos = Path(source.videos)
    (videos / "a.mkv").write_bytes((videos / "a.mkv").read_bytes()[: (videos / "a.mkv").stat().st_size // 2])
    (videos / "b" / "b_000030.jpg").unlink()
    with open(source.annotations, "a") as file:
        file.write(
            "c,0001,0.1,0.1,0.5,0.9,1,0\na,0099,0.1,0.1,0.5,0.9,1,0\na,0001,0.1,0.1,0.5,0.9,2,0\na,1\nx\n"
        )
    summaries, findings = check_ava(source)
    text = format_report(summaries, findings)
    for expected in (
        "video a: expected readable frames",
        "1 missing, first 30",
        "video c: expected c.mp4",
        "rows.csv:5: a,0099: second",
        "rows.csv:6: a,0001: action",
        "rows.csv:8: ",
        "6 problem(s)",
    ):
        assert expected in text
    assert [v.readable for v in summaries] == [False]


def test_annotations_without_rows(source):
    Path(source.annotations).write_text("")
    videos, (finding,) = check_ava(source)
    assert videos == [] and str(finding).startswith(
        f"{source.annotations}: expected rows of key frames, got none"
    )


def test_long_reports_are_cut(source, tmp_path):
    (tmp_path / "rows.csv").write_text("x\n" * 80)
    _, findings = check_ava(source)
    assert format_report([], findings).splitlines()[-2:] == [
        "... and 30 more",
        "0 videos, 0 key frames, 80 problem(s)",
    ]


def test_decoding_every_key_frame_finds_more(source):
    path = Path(source.videos) / "b" / "b_000031.jpg"  # that of second 1
    path.write_bytes(path.read_bytes()[:300])
    assert check_ava(source)[1] == []
    (finding,) = check_ava(source, decode=True)[1]
    assert "b_000031.jpg" in str(finding)


# --- index ---


def indexed(source) -> None:
    videos, _ = check_ava(source)
    video_folder.write_index(source.videos, [v.video for v in videos], source.fps)


def test_index_saves_looking_into_the_videos(source, monkeypatch):
    before = load_ava(source)
    indexed(source)
    monkeypatch.setattr(video_folder, "_look", lambda *_: pytest.fail("a video was opened again"))
    assert [r["video"] for r in load_ava(source)] == [r["video"] for r in before]


def test_index_is_ignored_where_something_changed(source):
    indexed(source)
    write_video(Path(source.videos) / "a.mkv", SECONDS[:45])
    assert load_ava(source)[0]["video"].num_frames == 45
    (Path(source.videos) / "b" / "b_000060.jpg").unlink()
    assert load_ava(source)[1]["video"].num_frames == 59
    assert load_ava(replace(source, fps=10.0))[0]["video"].num_frames == 15


def test_index_works_from_another_folder(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative = replace(source, videos="videos")
    indexed(relative)
    monkeypatch.chdir(tmp_path / "videos")
    record = load_ava(replace(source, videos="."))[0]
    assert record["video"].read([0]).shape == (1, 48, 64, 3)


def test_index_cannot_name_another_place(source, tmp_path):
    """It may come with downloaded data."""
    indexed(source)
    Path(source.videos, "b").rename(tmp_path / "private")
    write_frames(Path(source.videos, "b"), 60)
    os.utime(Path(source.videos, "b"), ns=(0, 0))
    index = Path(source.videos) / video_folder.INDEX_FILE
    entries = json.loads(index.read_text())
    state = video_folder._state(str(Path(source.videos, "b")), source.fps)
    forged = {"state": state, "prefix": str(tmp_path / "private" / "b_")}
    index.write_text(json.dumps([entries[0], entries[1] | forged]))
    assert {record["video"].place for record in load_ava(source)[1:]} == {str(Path(source.videos, "b"))}


def test_damaged_index(source):
    (Path(source.videos) / video_folder.INDEX_FILE).write_text('[{"state": 1')
    with pytest.raises(DataError, match="video_index.json.*delete it"):
        load_ava(source)


# --- mmaction2's people ---

PEOPLE = {
    "a,0001": np.array([[0.1, 0.1, 0.5, 0.9, 0.99], [0.6, 0.1, 0.9, 0.9, 0.5]], np.float32),
    "b,0002": np.zeros((0, 5), np.float32),
}


@pytest.mark.parametrize("name", ["a", "a, b", 'an "a"'])
def test_people_of_mmaction2(name, tmp_path):
    people = {key.replace("a", name): boxes for key, boxes in PEOPLE.items()}
    assert write_people(tmp_path / "boxes.csv", people) == 2
    table = read_ava_csv(tmp_path / "boxes.csv", scored=True)
    assert table.videos == [name]
    np.testing.assert_allclose(table.box, PEOPLE["a,0001"][:, :4], atol=1e-6)
    np.testing.assert_allclose(table.score, [0.99, 0.5], atol=1e-6)
    assert table.action.tolist() == [-1, -1]


@pytest.mark.parametrize(
    "people", [{"a0001": np.zeros((1, 5))}, {"a,0001": np.zeros((1, 4))}, {"a,x": np.zeros((1, 5))}]
)
def test_other_pickles(people, tmp_path):
    with pytest.raises(DataError, match="person proposals"):
        write_people(tmp_path / "boxes.csv", people)


# --- the command ---


def run_command(*arguments):
    root = Path(__file__).parents[2]
    command = [sys.executable, "tools/prepare_ava.py", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)


def test_command(source, tmp_path):
    files = ("--annotations", source.annotations, "--label-map", source.label_map, "--videos", source.videos)
    done = run_command(*files, "--index")
    assert done.returncode == 0, done.stderr
    assert "2 videos, 2 key frames, no problems" in done.stdout
    assert (Path(source.videos) / video_folder.INDEX_FILE).exists()
    (Path(source.videos) / "a.mkv").unlink()
    done = run_command(*files)
    assert done.returncode == 3
    assert "video a: expected a.mp4" in done.stdout
    assert "Traceback" not in done.stderr


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def test_command_converts_pickles_without_running_them(tmp_path):
    with open(tmp_path / "people.pkl", "wb") as file:
        pickle.dump(PEOPLE, file)
    done = run_command("--convert-boxes", tmp_path / "people.pkl", tmp_path / "boxes.csv")
    assert done.returncode == 0, done.stderr
    assert "2 people written" in done.stdout
    with open(tmp_path / "evil.pkl", "wb") as file:
        pickle.dump({"a,0001": Evil()}, file)
    done = run_command("--convert-boxes", tmp_path / "evil.pkl", tmp_path / "boxes.csv")
    assert done.returncode == 3
    assert "refused" in done.stderr
    assert not (Path(__file__).parents[2] / "was_run").exists()
