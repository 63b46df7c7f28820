"""`splice chat`"""

from __future__ import annotations

from typing import Annotated

import typer

from splice.cli.answer import show_answer
from splice.cli.console import say
from splice.cli.flags import with_settings
from splice.client import Client
from splice.settings.commands import ClientSettings


@with_settings(ClientSettings)
def command(
    settings: ClientSettings,
    message: Annotated[str | None, typer.Argument(help="One question. Without it, a conversation begins.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    receipt: Annotated[bool, typer.Option("--receipt/--no-receipt", help="Show how each answer travelled.")] = True,
) -> None:
    """Chat with a running cluster. Answers stream; each ends with its receipt."""
    with Client(settings.url, api_key=settings.api_key, timeout_s=settings.timeout) as client:
        model = settings.model or client.only_model()
        messages = [{"role": "system", "content": system}] if system else []
        if message is None:
            say(f"talking to {model}; an empty line or ctrl-D ends")
        while True:
            question = message if message is not None else _ask()
            if not question:
                return
            messages.append({"role": "user", "content": question})
            deltas = client.chat(
                model,
                messages,
                **settings.sampling(),
            )
            messages.append({"role": "assistant", "content": show_answer(deltas, receipt=receipt)})
            if message is not None:
                return


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
