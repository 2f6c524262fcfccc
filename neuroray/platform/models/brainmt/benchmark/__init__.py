"""BrainMT's steps against time, memory and other ways to compute them, in a report that names its machine."""
