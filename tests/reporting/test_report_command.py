"""The page from the command line."""

from nlnet_d2.reporting.report_command import main


def test_page(coco_run, tmp_path):
    page = tmp_path / "page.html"
    assert main([str(coco_run), "--page", str(page), "--attention", "0"]) == 0
    assert "Results on tiny_val" in page.read_text()


def test_no_run(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 3
    assert "there is no config.yaml" in capsys.readouterr().err
