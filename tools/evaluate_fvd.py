"""The evaluate command, as a program of its own."""

from latte.commands.evaluate import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
