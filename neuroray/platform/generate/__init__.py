"""The same brain at other ages, on the grid of the scan that it is told from."""
