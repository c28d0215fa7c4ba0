"""The sample command, under the name of the tutorial."""

from latte.commands.sample import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
