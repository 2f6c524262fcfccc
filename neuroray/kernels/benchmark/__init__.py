"""The kernels against their peers: right first, then time, memory and error, in a table that names its machine."""
