"""Protocols that the server speaks: pure functions between bytes and Python values, one module each."""
