"""The model written a second time, product by product in plain torch, for tests to compare with."""
