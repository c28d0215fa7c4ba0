"""The demo_data command."""

from latte.commands.demo_data import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
