"""Run `python -m sphere_pl`."""

from sphere_pl.commands import main

if __name__ == "__main__":
    main()
