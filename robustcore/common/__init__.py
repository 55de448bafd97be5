"""What the families share; knows none of them."""
