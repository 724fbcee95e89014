"""`python -m cromic_ds COMMAND …` is the program `cromic-ds`."""

from cromic_ds.cli import main

if __name__ == "__main__":
    main()
