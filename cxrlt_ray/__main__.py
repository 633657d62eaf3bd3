"""`python -m cxrlt_ray`: lists the commands, in the order of use."""

from cxrlt_ray import cli

if __name__ == "__main__":
    cli.main()
