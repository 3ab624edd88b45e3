"""``python -m mipprune`` is the ``mipprune`` command."""

from .cli import app

app(prog_name="mipprune")
