"""`splice complete`"""

from __future__ import annotations

from typing import Annotated

import typer

from splice.cli.answer import show_answer
from splice.cli.console import out
from splice.cli.flags import with_settings
from splice.client import Client
from splice.settings.commands import ClientSettings


@with_settings(ClientSettings)
def command(
    settings: ClientSettings,
    prompt: Annotated[str, typer.Argument(help="Text to continue, taken as it is.")],
    receipt: Annotated[bool, typer.Option("--receipt/--no-receipt", help="Show how the answer travelled.")] = True,
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to show.")] = 1,
    best_of: Annotated[int | None, typer.Option(help="Of this many answers, show the n likeliest.")] = None,
    beam_width: Annotated[
        int | None, typer.Option(help="Search for the n likeliest answers with this many beams.")
    ] = None,
) -> None:
    """Continue a text with a running cluster, without a chat template."""
    if n > 1 or best_of is not None or beam_width is not None:
        _show_several(settings, prompt, n, best_of, beam_width)
        return
    with Client(settings.url, api_key=settings.api_key, timeout_s=settings.timeout) as client:
        deltas = client.complete(
            settings.model or client.only_model(),
            prompt,
            **settings.sampling(),
        )
        show_answer(deltas, receipt=receipt)


def _show_several(settings: ClientSettings, prompt: str, n: int, best_of: int | None, beam_width: int | None) -> None:
    """Complete answers, one below the other."""
    asked = {**settings.sampling(), "n": n, "best_of": best_of}
    if beam_width is not None:
        asked |= {"use_beam_search": True, "beam_width": beam_width}
    with Client(settings.url, api_key=settings.api_key, timeout_s=settings.timeout) as client:
        answers = client.complete_whole(settings.model or client.only_model(), prompt, **asked)
    for answer in answers:
        score = f" · score {answer.score:.4f}" if answer.score is not None else ""
        out.rule(f"{answer.index + 1} of {len(answers)} · {answer.finish}{score}", align="left", style="dim")
        out.print(answer.text, markup=False, soft_wrap=True)
