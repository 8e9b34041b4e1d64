"""`python -m rayml` is the `rayml` command."""

from rayml.cli import main

main()
