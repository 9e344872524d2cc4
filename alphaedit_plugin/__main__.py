"""`python -m alphaedit_plugin …` is the command `alphaedit`."""

from alphaedit_plugin.cli import main

if __name__ == "__main__":
    main()
