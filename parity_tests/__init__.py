"""The parity ladder: how it is shown that both backends compute the same."""
