"""The convert command for a Latte network, under the name of the tutorial."""

from latte.commands.convert import main_latte
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main_latte)
