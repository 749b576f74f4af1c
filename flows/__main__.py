"""`python -m flows` is `plumline`."""

from flows.commands.cli import main

if __name__ == "__main__":
    main(prog_name="plumline")
