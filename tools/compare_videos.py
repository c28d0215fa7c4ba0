"""The compare command."""

from latte.commands.compare import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
