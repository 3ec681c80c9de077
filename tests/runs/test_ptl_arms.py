"""Arms of PTL with further changes of the recipe."""

import pytest

from reid_hub.runs.ptl import side_network, with_changes


def test_changes_of_the_side_network_keep_the_arm():
    """`--cell v2 --no-memory --set 'config.side={"bias": true}'` trained version 1 with a memory."""
    arm = side_network("res18-x0.25", "v2", memory=False)
    changes = {"batch_size": 8, "config.side": {"bias": True}}
    made = with_changes(arm, changes)
    side = {"cell": "v2", "memory": False, "bias": True}
    assert made == {"model": "res18-x0.25-ptl", "set": {"batch_size": 8, "config.side": side}}
    assert changes["config.side"] == {"bias": True}
    assert arm["set"]["config.side"] == {"cell": "v2", "memory": False}
    assert with_changes(arm, {"epochs": 1})["set"]["config.side"] == {"cell": "v2", "memory": False}


def test_the_backbone_alone_takes_no_options_of_a_side_network():
    none = side_network("res18-x0.25", "none")
    assert with_changes(none, {"batch_size": 8}) == {"model": "res18-x0.25-conv", "set": {"batch_size": 8}}
    with pytest.raises(ValueError, match=r"res18-x0\.25-conv without a cell has none"):
        with_changes(none, {"config.side": {"bias": True}})
