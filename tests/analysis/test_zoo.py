"""The zoo table and the command line."""

import json

import pytest

from nlnet_d2.analysis import zoo
from nlnet_d2.checkpoint.download import address_of
from nlnet_d2.cli.analyze import main
from nlnet_d2.config.zoo import CONFIGS, config_files

NL = CONFIGS / "coco" / "mask_rcnn_nl_R50_FPN.yaml"


@pytest.fixture
def analyze(capsys):
    """Run ``nlnet-d2 analyze``; returns its exit code, standard output and error."""

    def run(*argv):
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("NL. Published: box 39.0 (arXiv 1711.07971, v3). More.", "box 39.0 (arXiv 1711.07971, v3)"),
        (
            "Published on v2.2: 24.67 mAP (zoo); 24.8 by users. Full.",
            "on v2.2: 24.67 mAP (zoo); 24.8 by users",
        ),
        ("Published, K600: 28.2 mAP.", "K600: 28.2 mAP"),
        ("No number was published.", ""),
        ("nobody has published a number for it", ""),
    ],
)
def test_what_was_published_is_quoted_to_the_end_of_the_sentence(text, published):
    assert zoo.quoted("Published", text) == published


def test_header_is_the_comment_at_the_top(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# One line,\n# and another.\nMODEL:\n# not this\n")
    assert zoo.header(path) == "One line, and another."


def test_input_sizes():
    cfg = zoo.read_config(NL)
    assert zoo.input_size(cfg) == (3, 800, 1280)
    cfg.MODEL.FPN.SQUARE_PAD = 1024
    assert zoo.input_size(cfg) == (3, 1024, 1024)


def test_weights_of_all_recipes_are_listed_with_their_hash():
    rows = dict(map(zoo.weights_row, [f"https://{zoo_file}" for zoo_file in ("a/x.pkl", "a/x-0123abcd.pth")]))
    assert rows == {"https://a/x.pkl": "", "https://a/x-0123abcd.pth": "0123abcd..."}
    written = (CONFIGS / "README.md").read_text()
    used = {address_of(zoo.read_config(path).MODEL.WEIGHTS) for path in config_files(CONFIGS)} - {""}
    for address in used:
        assert f"| {' | '.join(zoo.weights_row(address))} |" in written, "run `make zoo-table`"


def test_row():
    cells = dict(zip(zoo.COLUMNS, zoo.row(NL, CONFIGS), strict=True))
    assert cells["config"] == "[mask_rcnn_nl_R50_FPN](coco/mask_rcnn_nl_R50_FPN.yaml)"
    assert cells["starts from"] == "MSRA/R-50.pkl"
    assert cells["params (M)"] == "46.44"
    assert cells["input"] == "800 x 1280"
    assert cells["published"] == "box 39.0, mask 35.5 (arXiv 1711.07971, section 6)"
    assert cells["measured"] == ""


def test_json_holds_the_exact_counts(analyze):
    code, out, _ = analyze("--config-file", NL, "--input-size", 256, 320, "--json")
    result = json.loads(out)
    assert code == 0 and {"config", "params", "backbone_params", "gflops", "rule"} <= set(result)
    assert result["params"] == 44_343_216 + 2_101_760
    assert result["backbone_params"] == 23_454_912 + 2_101_760
    assert result["input_size"] == [3, 256, 320]
    assert 30 < result["gflops"] < 100  # most of it in the heads, which see a fixed number of boxes


def test_options_on_the_command_line_count(analyze):
    _, out, _ = analyze("--config-file", NL, "--input-size", 64, 64, "--json", "MODEL.CONTEXT.BLOCKS", "[]")
    assert json.loads(out)["params"] == 44_343_216


def test_tree_shows_modules_to_its_depth(analyze):
    _, out, _ = analyze("--config-file", NL, "--tree", 3, "--input-size", 64, 64)
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert lines["mask_head"][0] == "2,643,280"
    assert "deconv" in lines and "theta" not in lines


def test_json_tree_is_exact_and_adds_up(analyze):
    arguments = ("--config-file", NL, "--tree", 6, "--input-size", 64, 96, "--json")
    result = json.loads(analyze(*arguments)[1])
    modules = result["modules"]
    block = modules["backbone.bottom_up.res4.4.after_add.0"]
    convs, attention = 4 * 1024 * 512 * 4 * 6, 2 * 24 * 24 * 512  # 24 positions of stride 16
    assert block == {"params": 2_101_760, "flops": convs + attention}
    tops = [cost for name, cost in modules.items() if "." not in name]
    assert sum(cost["params"] for cost in tops) == result["params"]
    assert sum(cost["flops"] for cost in tops) == round(result["gflops"] * 1e9)
    assert result["attention_map_mb"] * 1e6 == 4 * 24 * 24
    assert result["mega_activations"] * 1e6 > 24 * (512 * 4 + 1024)


@pytest.mark.parametrize("option", [["--memory", 16], ["--tree", 2], ["--input-size", 64, 64], ["SEED", 1]])
def test_options_of_one_config_are_not_passed_over_for_all(analyze, capsys, option):
    with pytest.raises(SystemExit) as ended:
        analyze("--all", *option)
    assert ended.value.code == 2 and "are for one --config-file" in capsys.readouterr().err


def test_help_explains_every_key_of_the_output(analyze, capsys):
    keys = json.loads(analyze("--config-file", NL, "--tree", 1, "--input-size", 64, 64, "--json")[1])
    with pytest.raises(SystemExit):
        analyze("--help")
    text = capsys.readouterr().out
    assert all(key in text for key in keys)


@pytest.mark.parametrize(
    ("name", "frames"),
    [("slow_4x16_R50", 4), ("slow_8x8_R50", 8), ("slowfast_8x8_R50", 32), ("slowfast_16x8_R101_NL", 64)],
)
def test_clips_have_the_frames_of_the_config(name, frames):
    cfg = zoo.read_config(CONFIGS / "ava" / f"{name}.yaml")
    assert zoo.input_size(cfg) == (3, frames, 256, 256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--config-file", NL, "--input-size", "64"], "--input-size: expected 2 numbers > 0, got [64]"),
        (["--config-file", NL, "--input-size", "0", "64"], "--input-size: expected 2 numbers > 0"),
        (["--config-file", NL, "MODEL.RESNETS.DEPTH", "51"], "MODEL.RESNETS.DEPTH 51 is unknown"),
        (["--config-file", NL, "MODEL.RESNETS.DEPHT", "50"], "did you mean MODEL.RESNETS.DEPTH"),
        (
            ["--config-file", NL, "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"],
            "mask_rcnn_nl_R50_FPN.yaml: Got sizes of length 2 in anchor generator",
        ),
        (
            ["--config-file", NL, "MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
            "SemanticSegmentor cannot be counted, only GeneralizedRCNN, DenseDetector, ActionRCNN",
        ),
    ],
)
def test_bad_arguments_end_with_a_message(analyze, arguments, message):
    code, out, err = analyze(*arguments)
    assert code == 2 and message in err and not out
