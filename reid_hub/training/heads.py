"""The former names of `reid_hub.methods.state`."""

from reid_hub.methods.state import STATE_FILE as HEADS_FILE
from reid_hub.methods.state import known_identities
from reid_hub.methods.state import read_state as read_heads
from reid_hub.methods.state import write_state as write_heads

__all__ = ["HEADS_FILE", "known_identities", "read_heads", "write_heads"]
