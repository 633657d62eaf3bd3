"""`python -m cxrlt_ray.doctor`."""

from cxrlt_ray import cli

if __name__ == "__main__":
    cli.run("doctor")
