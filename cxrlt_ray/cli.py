"""The console script `cxrlt-ray COMMAND ...`; each COMMAND is also `python -m cxrlt_ray.COMMAND`.

A command is the function `main` of its module, read by typer. Modules are imported only when
their command is asked for, so that `--help` answers at once. Every command takes `--quiet` and `--json`, the forms of
`cxrlt_ray/output/`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

from cxrlt_ray import output
from cxrlt_ray.errors import CxrltError, Terminated, UsageError
from cxrlt_ray.output import console
from cxrlt_ray.output.counting import duration

if TYPE_CHECKING:
    from pydantic import BaseModel

Main = Callable[..., None]
Result = TypeVar("Result")
__all__ = ["COMMANDS", "command", "console", "duration", "main", "option", "run", "say", "with_progress"]
GROUPS = {  # in the order in which one uses them
    "look": {
        "phantom": "write a cohort of procedural chest X-rays in the CXR-LT 2024 layout",
        "cohort": "summarise a data directory: counts, missing files, leaks, refusals",
        "doctor": "check what would go wrong in a sweep, and how to fix it",
    },
    "label": {
        "label": "label radiology reports",
        "gold": "draw studies to label by hand; merge the readers' labels",
        "agree": "compare labels with hand labels",
        "split": "divide labelled studies into train, val and test, and make a cohort of them",
    },
    "prepare": {
        "prepare": "resize originals to shards, once",
        "generate": "draw X-rays of rare findings with a diffusion model",
        "describe": "show, check and draft descriptions of findings",
        "pretrain": "train a backbone on images without labels",
        "pretrain_text": "train a text encoder on a knowledge graph",
    },
    "train": {
        "sweep": "train many trials",
        "trials": "list runs and trials",
    },
    "combine": {
        "ensemble": "select and weight trials, score the test images, write the submission",
        "pseudo": "label with an ensemble what nobody labelled, for a student",
    },
    "judge": {
        "evaluate": "score a submission",
        "report": "write a run's report as one HTML page, or set two runs side by side",
    },
    "use": {
        "predict": "score new images with an ensemble",
    },
}
COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}
FORMS = {"--quiet": "print only errors and the result's last lines", "--json": "print one JSON object per line"}


def run(name: str, argv: list[str] | None = None) -> NoReturn:
    """Run command `name` with `argv` (default: the process's) and exit: 0 good, 1 failed, 2 wrong usage."""
    given = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a name that its encoding lacks is printed as \xc9, and ends nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with output.using(_form(name, given)) as form:
        exit_code = _exit_code(name, given, form)
    raise SystemExit(exit_code)


def app(name: str, argv: Sequence[str] = ()) -> Any:
    """The typer app of command `name`, which `argv` calls."""
    import typer

    function = importlib.import_module(f"cxrlt_ray.{name}").main
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    line = f"python -m cxrlt_ray.{name} {shlex.join(argv)}".rstrip()
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(_one_sentence(function, line))
    return app


def _form(name: str, argv: Sequence[str]) -> output.Form:
    """The requested form of output; known before the options are parsed, since errors in them are printed too."""
    from cxrlt_ray import __version__

    if "--json" in argv:
        return output.Json(name, __version__)
    return output.Quiet() if "--quiet" in argv else output.Text()


def _exit_code(name: str, argv: list[str], form: output.Form) -> int:
    """Run the command; returns its exit code."""
    many = getattr(importlib.import_module(f"cxrlt_ray.{name}").main, "many", ())
    machine = isinstance(form, output.Json)
    try:
        code = app(name, argv)(
            args=spread(argv, many), prog_name=f"python -m cxrlt_ray.{name}", standalone_mode=not machine
        )
    except SystemExit as stop:
        code = stop.code
    except Exception as error:
        if not machine:
            raise
        if not hasattr(error, "format_message"):  # not click's, of wrong options
            output.error(f"{type(error).__name__}, a fault of cxrlt_ray: the traceback is on stderr.", 1)
            raise
        code = getattr(error, "exit_code", 2)
        output.error(error.format_message(), code)
    exit_code = code if isinstance(code, int) else int(code is not None)
    if isinstance(form, output.Json) and not form.ended:
        output.result("", exit_code=exit_code)
    return exit_code


def main() -> None:
    """The console script: dispatch to a command's module."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: cxrlt-ray COMMAND [options]    (--help: those of COMMAND)\n")
        for group, commands in GROUPS.items():
            print("\n".join((group, *(f"  {command:13} {what}" for command, what in commands.items()))))
        return
    if name == "--version":
        from cxrlt_ray import __version__

        print(f"cxrlt-ray {__version__}")
        return
    if name not in COMMANDS:
        print(f"cxrlt-ray: no command '{name}'; there are: {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    run(name, sys.argv[2:])


def option(help: str, *names: str) -> Any:
    """A typer option with this help text."""
    import typer

    return typer.Option(*names, help=help, show_default=True)


def argument(help: str) -> Any:
    """A typer argument with this help text."""
    import typer

    return typer.Argument(help=help)


def say(line: str) -> None:
    """Print a line at once, even into a pipe: the work that it announces takes a while."""
    print(line, flush=True)


PRINTING: tuple[object, ...] = (print, say)


def heard_by(say: Callable[[str], None]) -> Callable[[str], None] | None:
    """The receiver of progress lines instead of the command's output; None if `say` is a function that prints."""
    return None if say in PRINTING else say


def size(count: float) -> str:
    """A number of bytes in readable form: 3.2 MB, 29 GB."""
    for most, unit, name in ((1e6, 1e3, "KB"), (1e9, 1e6, "MB"), (1e13, 1e9, "GB")):
        if count < most:
            return f"{count / unit:,.1f} {name}" if count / unit < 10 else f"{count / unit:,.0f} {name}"
    return f"{count / 1e12:,.1f} TB"


def with_progress(
    results: Iterable[Result],
    total: int,
    say: Callable[[str], None],
    count: Callable[[Result], int] = lambda _: 1,
    noun: str = "images",
) -> Iterator[Result]:
    """`results` as they arrive, while the number done of `total` images is shown: a bar, or from time to time a line.

    count: the number of images in a result. noun: what is counted.
    """
    with output.counter(noun, total, heard_by(say)) as counter:
        for result in results:
            yield result
            counter.advance(count(result))


TOO_FEW = "(too few)"  # positive subjects, to give an interval


def short(score: float) -> str:
    """A score in three digits, without the 0 before the point; "-" for nan."""
    return "-" if score != score else f"{score:.3f}".removeprefix("0")


def ranged(score: float, low: float, high: float) -> str:
    """A score with its interval, or TOO_FEW where there is none."""
    if score != score:
        return "-"
    return short(score) + (f" [{short(low)}, {short(high)}]" if low == low else f" {TOO_FEW}")


def gained(difference: float, low: float, high: float) -> str:
    """A difference of scores with its interval, TOO_FEW where there is none, or - where systems do not differ."""
    if high - low < 1e-9:
        return f"{difference:+.3f} -"
    return f"{difference:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low == low else f" {TOO_FEW}")


def shortened(value: object) -> str:
    """A text cut to 80 characters, for a cell of a table or a message."""
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def spread(args: list[str], many: tuple[str, ...]) -> list[str]:
    """`--from a b` as `--from a --from b`, for the options `many` that take several values."""
    single: list[str] = []
    option = ""  # of `many`, whose values these are
    for arg in args:
        if arg.startswith("-"):
            option = arg if arg in many else ""
            if not option:
                single.append(arg)
        else:
            single.extend([option, arg] if option else [arg])
    return single


def command(request: type[BaseModel], run: Callable[[Any], object], doc: str, many: tuple[str, ...] = ()) -> Main:
    """A command's `main` whose options are the fields of `request`: it runs a request of those that were given.

    A field's annotation carries `option(...)` or `argument(...)`. The request's model_fields_set says which options
    were given, even where a value is the default. many: options that take several values, as for `spread`.
    """

    def main(*args: Any, **kwargs: Any) -> None:
        run(request(**signature.bind(*args, **kwargs).arguments))

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.is_required() else field.default,
            annotation=Annotated[field.annotation, *field.metadata],
        )
        for name, field in request.model_fields.items()
    ]
    signature = inspect.Signature(parameters)
    main.__signature__ = signature  # type: ignore[attr-defined]
    main.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    main.__doc__, main.many = doc, many  # type: ignore[attr-defined]
    return main


def _one_sentence(function: Main, command: str) -> Main:
    """`function`, called with the given options only; our own errors become one sentence and an exit code.

    command: the whole command line, which continues where it was stopped.
    """
    import typer

    @functools.wraps(function)
    def wrapped(context: typer.Context, **options: object) -> None:
        given = {name: value for name, value in options.items() if _given(context, name)}
        forms = [option for option in FORMS if given.pop(option.removeprefix("--"), False)]
        try:
            if len(forms) > 1:
                raise UsageError(f"{' and '.join(forms)} are two forms of output: give one.")
            with _sigterm_as_ctrl_c():
                function(**given)
        except CxrltError as error:
            output.error(str(error), error.exit_code)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            by = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
            said = f"stopped by {by}; what is done is kept, and the same command goes on: `{command}`"
            output.error(said, 1, prefix="")
            raise SystemExit(1) from None

    own = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    forms = [_form_option(name, help) for name, help in FORMS.items()]
    parameters = [own, *inspect.signature(function, eval_str=True).parameters.values(), *forms]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _form_option(name: str, help: str) -> inspect.Parameter:
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    annotation = Annotated[bool, option(help, name)]
    return inspect.Parameter(name.removeprefix("--"), keyword, default=False, annotation=annotation)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Raise Terminated at SIGTERM, as Slurm and Kubernetes send it; a second one ends the process as it always does."""
    owner = os.getpid()

    def handle(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == owner:
            raise Terminated
        os.kill(os.getpid(), number)  # a process forked from this one

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _given(context: Any, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is None or not source.name.startswith("DEFAULT")


if __name__ == "__main__":
    main()
