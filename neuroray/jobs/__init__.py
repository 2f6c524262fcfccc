"""What a person runs: each module is one job of the command line."""
