"""The containers of Apache Amoro: optimizers started as AMS would have started them."""
