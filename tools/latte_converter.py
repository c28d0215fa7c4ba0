"""The convert command for a Latte network, under the name of the tutorial."""

from latte.commands.convert import main_network
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main_network)
