"""The contract of blocks/base.py, for every registered block, and the errors of block specs."""

import pickle

import pytest
import torch
from learning import learn

import nlnet_d2  # noqa: F401  (fills the registry)
from nlnet_d2.blocks import BLOCKS, parse_spec, place_blocks

NAMES = sorted(name for name, _ in BLOCKS)
NOT_IDENTITY = {"SqueezeExcitation"}  # its paper starts from a random gate
STAGES = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}


def build(name, channels=64, dim=2):
    torch.manual_seed(0)
    return BLOCKS.get(name)(channels, dim=dim)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1), (4, 6, 8), (3, 5, 7), (1, 1, 1)])
def test_shape_and_identity_at_initialisation(name, size):
    block, x = build(name, dim=len(size)), torch.randn(2, 64, *size)
    for mode in (True, False):
        block.train(mode)
        out = block(x)
        assert out.shape == x.shape and out.isfinite().all()
        assert torch.equal(out, x) == (name not in NOT_IDENTITY)


@pytest.mark.parametrize("name", NAMES)
def test_learns_from_its_initial_state(name):
    """Zero-initialised or not, a few steps reduce the loss, and by then every parameter has a gradient."""
    block, x = build(name), torch.randn(4, 64, 3, 5)
    target = torch.randn(4, 64, 1, 1).expand_as(x)
    learn(block, x, target, lr=0.3, steps=5)
    for parameter, value in block.named_parameters():
        assert value.grad is not None, f"{parameter} gets no gradient"


@pytest.mark.parametrize("name", NAMES)
def test_gradient_flows_to_the_input(name):
    block, x = build(name), torch.randn(2, 64, 3, 4, requires_grad=True)
    block(x).square().sum().backward()
    assert (x.grad.abs().sum((0, 1)) > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [2, 3])
def test_meta_device(name, dim):
    with torch.device("meta"):
        block = build(name, 1024, dim)
        out = block(torch.empty(2, 1024, *(4, 8, 9)[-dim:]))
    assert out.device.type == "meta" and out.shape == (2, 1024, *(4, 8, 9)[-dim:])


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name):
    """A head sees no boxes when an image has none."""
    block, x = build(name), torch.zeros(0, 64, 7, 7, requires_grad=True)
    out = block(x)
    out.sum().backward()
    assert out.shape == x.shape


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_trace_holds_for_other_sizes(name):
    block = build(name).eval()
    for value in block.parameters():
        torch.nn.init.normal_(value, std=0.3)
    trace, x = torch.jit.trace(block, torch.randn(1, 64, 5, 6)), torch.randn(2, 64, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(trace(x), block(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [2, 3])
def test_is_compiled_whole(name, dim):
    """Without a break of the graph, which costs time in every network that has the block."""
    block, x = build(name, dim=dim).eval(), torch.randn(1, 64, *(3, 5, 6)[-dim:])
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


@pytest.mark.parametrize("name", NAMES)
def test_can_be_pickled(name):
    block, x = build(name).eval(), torch.randn(1, 64, 5, 4)
    for value in block.parameters():
        torch.nn.init.normal_(value, std=0.3)
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), block(x))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_restores_the_block(name):
    block, other = build(name).eval(), BLOCKS.get(name)(64).eval()
    for value in block.parameters():
        torch.nn.init.normal_(value, std=0.3)
    other.load_state_dict(block.state_dict())
    x = torch.randn(1, 64, 5, 4)
    with torch.no_grad():
        assert not torch.equal(block(x), x)
        assert torch.equal(other(x), block(x))


def test_options_reach_the_block():
    spec = parse_spec({"NAME": "GlobalContext", "AT": {"res4": "all"}, "REDUCTION": 4, "FUSION": "both"})
    block = spec.build(64, dim=3)
    assert block.channel_mul_conv[0].weight.shape == (16, 64, 1, 1, 1)


def test_places_keep_the_order_of_the_list():
    placed = place_blocks(
        [
            {"NAME": "NonLocal", "AT": {"res4": [-2, 0], "res5": "all"}},
            {"name": "GlobalContext", "at": {"res4": [4]}, "position": "after_conv3"},
        ],
        STAGES,
    )
    names = {stage: [[spec.name for spec in place] for place in places] for stage, places in placed.items()}
    nl, gc = "NonLocal", "GlobalContext"
    assert names["res4"] == [[nl], [], [], [], [nl, gc], []]
    assert names["res5"] == [[nl]] * 3
    assert not any(names["res2"] + names["res3"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("NonLocal", "an entry is a map, such as {NAME: NonLocal, .*; got 'NonLocal'"),
        ({"AT": {"res4": [0]}}, "lacks NAME"),
        ({"NAME": "NonLocal"}, "lacks AT"),
        ({"NAME": "NonLocl", "AT": {}}, "no block is named 'NonLocl'; did you mean NonLocal"),
        ({"NAME": "NonLocal", "AT": "res4"}, "AT of NonLocal is a map from stage to indices"),
        ({"NAME": "NonLocal", "AT": {"res6": [0]}}, "no stage 'res6'; did you mean"),
        ({"NAME": "NonLocal", "AT": {"res4": [6]}}, "res4 has 6 places, -6 to 5; got 6"),
        ({"NAME": "NonLocal", "AT": {"res4": [0, -7]}}, "got -7"),
        ({"NAME": "NonLocal", "AT": {"res4": -2}}, "res4 takes a list of indices, or all; got -2"),
        ({"NAME": "NonLocal", "AT": {"res4": "last"}}, "list of indices, or all; got 'last'"),
        ({"NAME": "NonLocal", "AT": {"res4": [0.5]}}, "list of indices"),
        ({"NAME": "NonLocal", "AT": {"res4": [0]}, "POSITION": "after_conv4"}, "'after_conv4' is unknown"),
        ({"NAME": "NonLocal", "AT": {"res4": [0]}, "RATIO": 4}, "NonLocal has no option RATIO; known: "),
        ({"NAME": "NonLocal", "AT": {"res4": [0]}, "REDUCTON": 4}, "did you mean REDUCTION"),
    ],
)
def test_bad_spec(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        place_blocks([entry], STAGES)
    assert str(error.value).startswith("MODEL.CONTEXT.BLOCKS: ")


def test_an_option_that_does_not_fit_names_the_key_and_the_block():
    spec = parse_spec({"NAME": "GlobalContext", "AT": {"res4": [0]}, "REDUCTION": 512}, "MODEL.X.BLOCKS")
    with pytest.raises(ValueError, match="MODEL.X.BLOCKS: GlobalContext on 256 channels: REDUCTION 512"):
        spec.build(256)
