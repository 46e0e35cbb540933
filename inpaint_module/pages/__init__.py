"""Pages: HTML from the templates in this folder, which needs nothing else when it is opened.

The one place that builds HTML. jinja2 escapes every value; only what `render_part` returned goes into a page as it is.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "style.css").read_text(encoding="utf-8")
_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> str:
    """A page of a template of this folder.

    Args:
        template: its file name.
        values: what it names; all are escaped but parts by `render_part`.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    return _TEMPLATES.get_template(template).render(**values)


def render_part(template: str, **values: Any) -> Markup:
    """As `render`, a part of a page."""
    return Markup(render(template, **values))


def data_url(data: bytes, kind: str) -> str:
    """A picture's file inside an address; `kind` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
