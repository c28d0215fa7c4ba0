"""The train_vae command."""

from latte.commands.train_vae import main
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main)
