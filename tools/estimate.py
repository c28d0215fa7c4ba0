"""The estimate command."""

from latte.commands.estimate import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
