"""`python -m sa2depth`: the command `sa2depth`, where its folder is not on the path."""

from sa2depth.cli import main

if __name__ == "__main__":
    main()
