"""`splice complete`"""

from __future__ import annotations

from typing import Annotated

import typer

from splice.cli.answer import show_answer
from splice.cli.flags import with_settings
from splice.client import Client
from splice.settings.commands import ClientSettings


@with_settings(ClientSettings)
def command(
    settings: ClientSettings,
    prompt: Annotated[str, typer.Argument(help="Text to continue, taken as it is.")],
    receipt: Annotated[bool, typer.Option("--receipt/--no-receipt", help="Show how the answer travelled.")] = True,
) -> None:
    """Continue a text with a running cluster, without a chat template."""
    with Client(settings.url, api_key=settings.api_key, timeout_s=settings.timeout) as client:
        deltas = client.complete(
            settings.model or client.only_model(),
            prompt,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
        )
        show_answer(deltas, receipt=receipt)
