"""The schedule command."""

from latte.commands.schedule import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
