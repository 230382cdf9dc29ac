"""Every shipped protocol loads; mistakes are told with the nearest valid word."""

import pytest

from medsam2_ft.benchmark.protocol import FOLDER, Protocol, known_protocols, load_protocol, protocol_from
from medsam2_ft.errors import ConfigError


@pytest.mark.parametrize("name", known_protocols())
def test_every_shipped_protocol_loads_and_says_how_it_is_run(name):
    protocol = load_protocol(name)
    assert protocol.description
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# python -m medsam2_ft benchmark")


def test_the_promised_protocols_are_there():
    promised = {"paper_2d", "paper_3d", "paper_video", "flare22_slicewise", "litemedsam_anchor", "robustness"}
    assert promised <= set(known_protocols())


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"taks": "slices"}, "task"),
        ({"box": "unoin"}, "union"),
        ({"sweep": {"loosness": [1]}}, "looseness"),
        ({"jitter": {"maximum": 3}}, "jitter"),
    ],
)
def test_mistakes_name_the_nearest_valid_word(settings, word):
    with pytest.raises(ConfigError, match=word):
        protocol_from({"name": "p", **settings})
    with pytest.raises(ConfigError, match="paper_3d"):
        load_protocol("paper3d")


def test_digest_follows_numbers_not_words():
    assert Protocol("p", description="a").digest == Protocol("p", description="b").digest
    assert Protocol("p", margin=0.1).digest != Protocol("p").digest
