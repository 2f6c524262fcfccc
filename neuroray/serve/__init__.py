"""From checkpoint to answer."""
