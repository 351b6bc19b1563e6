"""`python -m jaxcl` is the command `jaxcl`."""

from jaxcl.cli.main import main

if __name__ == "__main__":
    main()
