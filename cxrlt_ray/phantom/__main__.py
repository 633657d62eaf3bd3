"""`python -m cxrlt_ray.phantom DIR`."""

from cxrlt_ray import cli

if __name__ == "__main__":
    cli.run("phantom")
