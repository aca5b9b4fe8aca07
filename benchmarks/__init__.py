"""Captures of any size, and podtap and its peers run over them."""
