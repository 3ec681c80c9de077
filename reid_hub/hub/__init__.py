"""Model cards, publishing on the Hub, and conversion of checkpoints of other libraries."""
