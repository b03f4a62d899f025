"""SHOW: the command line, the app, the JSON API and the demo; everything a user sees, and nothing that decides.

The only room that may import click, panel, holoviews and bokeh. Each part is imported by its own name (`apps.cli`,
`apps.demo`): importing `apps` does nothing.
"""
