"""A small fleet of real processes on this machine, to watch being healed."""
