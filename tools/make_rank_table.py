"""The rank_table command."""

from latte.commands.rank_table import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
