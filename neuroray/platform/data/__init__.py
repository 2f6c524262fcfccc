"""What is read when, and the streams that carry it to training."""
