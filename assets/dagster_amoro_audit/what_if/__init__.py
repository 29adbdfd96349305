"""What other policies would have made of the recorded incidents, and the advice from that."""
