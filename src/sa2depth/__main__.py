"""`python -m sa2depth` runs the command `sa2depth`, even if its folder is not on the path."""

from sa2depth.cli import main

if __name__ == "__main__":
    main()
