"""`python -m holdfast`, for launchers that start modules."""

from holdfast.cli.main import main

if __name__ == "__main__":
    main()
