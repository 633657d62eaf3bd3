"""The sections of the page, one module each: what it gathers of a run, and how it shows that.

To add one: a module in this folder with a function under `@register_section(...)` (registry.py). The page, report.json
and the tests that all sections must pass find it by itself.
"""
