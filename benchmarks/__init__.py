"""What the keeper costs, as ratios to what the same work costs without it."""
