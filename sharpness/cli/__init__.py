"""The command line: each command reads its arguments, calls one function, and prints or writes what it returns."""

from sharpness.cli.app import main

__all__ = ["main"]
