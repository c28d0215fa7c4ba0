"""The commands, one file each, with `main()`."""
