"""The convert command for an autoencoder, under the name of the tutorial."""

from latte.commands.convert import main_vae
from latte.errors import run_main

if __name__ == "__main__":
    run_main(main_vae)
