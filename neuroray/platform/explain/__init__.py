"""What a prediction rests on, in the space of the scan."""
