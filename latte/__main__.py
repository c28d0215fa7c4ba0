"""`python -m latte`: the same as the `latte` program."""

from latte.commands.main import main

if __name__ == "__main__":
    main()
