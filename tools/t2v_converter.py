"""The convert command for a text-to-video folder."""

from latte.commands.convert import main_folder
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main_folder)
