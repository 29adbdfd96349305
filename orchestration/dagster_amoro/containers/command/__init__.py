"""`CommandContainer`: any command line as a worker, on the host where the run executes."""
