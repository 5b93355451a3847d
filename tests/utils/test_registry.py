"""Builders by name: ours first, then those of the framework that the project runs in."""

import fvcore.common.registry
import pytest

from mask2former.utils.registry import Registry, find_builder


@pytest.fixture
def registry():
    """Return a registry with one builder, and a host with that name and another one."""
    ours, theirs = Registry("ours"), fvcore.common.registry.Registry("theirs")
    ours.register_as("both")(lambda: "ours")
    for name in ("both", "hosts"):
        theirs._do_register(name, lambda: "theirs")
    ours.host = theirs
    return ours


def test_ours_come_first(registry):
    assert find_builder(registry, "both", "KEY")() == "ours"
    assert find_builder(registry, "hosts", "KEY")() == "theirs"


def test_an_unknown_name_is_an_error_with_the_known_ones(registry):
    with pytest.raises(ValueError, match=r"KEY is 'neither', which is not registered; .* both, hosts$"):
        find_builder(registry, "neither", "KEY")
    registry.host = None
    with pytest.raises(ValueError, match=r"KEY is 'hosts', .* both$"):
        find_builder(registry, "hosts", "KEY")
