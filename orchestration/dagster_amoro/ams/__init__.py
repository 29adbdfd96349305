"""What can be learned from a running AMS: whether it answers, who leads, which version it is."""
