"""The report of a run as one self-contained HTML page, with its numbers as JSON and a model card beside it.

A page is made of sections, one module each in `sections/`: what it gathers from a run (facts.py) goes to the JSON
file, and the page is drawn from that file's content alone.
"""
