"""`python -m app` is the `fitserve` command."""

from app.cli.main import main

if __name__ == "__main__":
    main()
