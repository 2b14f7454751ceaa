"""`python -m locallab`."""

from locallab.cli import main

if __name__ == "__main__":
    main()
