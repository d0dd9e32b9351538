"""The training loop and what it is made of; knows no method's insides."""
