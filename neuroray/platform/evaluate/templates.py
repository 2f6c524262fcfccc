"""The templates of every page, and the look (`house.css`) that they share."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template


def open_template(package: str, name: str) -> Template:
    """A template that lies beside the modules of a package; `{% include "house.css" %}` gives it the house look.

    Text is escaped, and a value that is not there is an error.
    """
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("neuroray.platform.evaluate", ".")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
