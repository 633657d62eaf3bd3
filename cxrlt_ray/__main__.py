"""`python -m cxrlt_ray`: the commands, in the order in which one uses them."""

from cxrlt_ray import cli

if __name__ == "__main__":
    cli.main()
