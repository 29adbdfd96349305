"""What is built and installed, in environments made for that."""
