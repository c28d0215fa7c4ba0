"""The programs, one file per command, each with `main()`."""
