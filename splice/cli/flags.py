"""A settings class becomes the flags of a command: names, help and groups come from the settings themselves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from splice.cli.console import out
from splice.settings.commands import names_of_all_commands
from splice.settings.environment import setting_variables
from splice.settings.parse import size_text
from splice.settings.resolve import Resolved, resolve
from splice.settings.setting import Setting, settings_of

S = TypeVar("S")


def with_settings(settings_class: type[S], *, model_argument: bool = False) -> Callable[[Callable[..., None]], Any]:
    """Decorates `command(settings, **own parameters)` into a function that typer turns into a command.

    With `model_argument`, the model can also be given as the first word.
    """
    known = settings_of(settings_class)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            config, print_config = given.pop("config"), given.pop("print_config")
            named = given.pop("model_word", None)
            flags = {}
            for name in known:
                value = given.pop(name)
                if value is not None:
                    flags[name] = _written(value)
            if named is not None:
                if "model" in flags:
                    raise typer.BadParameter("give the model once: as the first word or with --model")
                flags["model"] = named
            resolved = resolve(
                settings_class,
                flags=flags,
                environment=setting_variables(),
                config=config,
                known_elsewhere=names_of_all_commands(),
            )
            if print_config:
                _print(resolved)
                return
            command(resolved.settings, **given)

        parameters = [_parameter(each) for each in known.values()]
        parameters += [
            _extra(
                "config", Path | None, typer.Option("--config", help="YAML file of settings.", metavar="FILE"), None
            ),
            _extra(
                "print_config",
                bool,
                typer.Option("--print-config", help="Print every setting with its origin, then stop."),
                False,
            ),
            *[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own],
        ]
        if model_argument:
            word = typer.Argument(help="The same as --model.", metavar="[MODEL]", show_default=False)
            parameters.insert(0, _extra("model_word", str | None, word, None))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take it, their type does not say so
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        del run.__wrapped__  # typer must see the signature made here
        return run

    return decorate


def _parameter(known: Setting) -> inspect.Parameter:
    default = "" if known.default in (None, ()) else f" [dim]\\[default: {_shown(known, known.default)}][/dim]"
    names = [known.flag, f"--no-{known.flag[2:]}"] if known.is_switch else [known.flag]
    option = typer.Option(
        "/".join(names) if known.is_switch else known.flag,
        help=known.help + default,
        metavar=None if known.is_switch else known.metavar,
        rich_help_panel=known.group,
        show_default=False,
    )
    return _extra(known.name, bool | None if known.is_switch else str | None, option, None)


def _extra(name: str, kind: Any, info: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _written(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _shown(known: Setting, value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return _written(value)
    if isinstance(value, int) and known.metavar == "SIZE":
        return size_text(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _print(resolved: Resolved[Any]) -> None:
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for name, known in settings_of(type(resolved.settings)).items():
        value = getattr(resolved.settings, name)
        shown = "(hidden)" if known.secret and value is not None else _shown(known, value)
        table.add_row(known.flag[2:], shown, resolved.origins[name])
    out.print(table)
