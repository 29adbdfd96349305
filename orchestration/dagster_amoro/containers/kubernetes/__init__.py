"""Kubernetes: how its API is called, and `PodContainer`, for workers that are pods of their own."""
