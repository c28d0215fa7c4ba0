"""The merge_lora command."""

from latte.commands.merge_lora import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
