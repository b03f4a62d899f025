"""The command `rewind`: the table of its verbs, and how every one of them ends.

Exit codes: 0 done; 1 the answer is no (diverged, findings); 2 wrong use or a broken trace, with one line on stderr;
130 after Ctrl-C, 141 when the reader of its output went away (as shells count the two signals). `record` ends with the
exit code of the program it recorded.

A verb parses, calls one library function, prints; what is heavy is imported inside it, so that `rewind --help`
is quick.
Room: apps. May touch: argv, stdout and stderr, and PYTHONHASHSEED of the process that is to record.
"""

from __future__ import annotations

import os
import secrets
import sys

import click

from apps import cli_ask, cli_demo, cli_live, cli_read, cli_record, cli_replay, cli_show
from tracer.errors import RewindError

# A module of verbs joins by one line here.
_VERBS = (
    *cli_record.VERBS,
    *cli_read.VERBS,
    *cli_live.VERBS,
    *cli_replay.VERBS,
    *cli_ask.VERBS,
    *cli_show.VERBS,
    *cli_demo.VERBS,
)
_RECORDING = ("record", "demo")
INTERRUPTED = 130
READER_GONE = 141


class _InOrder(click.Group):
    """Lists the verbs as the table has them, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    commands={verb.name: verb for verb in _VERBS if verb.name},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="rewind-torch", prog_name="rewind")
def cli() -> None:
    """Record a PyTorch training run, and play it back bit for bit.

    \b
    rewind record train.py --epochs 3      record an unmodified script
    rewind replay runs/train-1 --at 500    start it again at step 500
    rewind verify runs/train-1             prove that it re-executes bit for bit
    rewind sql runs/train-1 "select step, loss from steps order by loss desc limit 5"
    """


def main() -> None:
    """Run the command line of this process, and leave it with the exit code."""
    _fix_hash_seed(sys.argv[1:])
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command and return its exit code; what went wrong is one line on stderr."""
    try:
        code = cli.main(args, prog_name="rewind", standalone_mode=False)
    except RewindError as error:
        return _refuse(str(error))
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "rewind"
        return _refuse(f"{error.format_message()} (see `{verb} --help`)")
    except click.ClickException as error:
        return _refuse(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit:
        # Only click raises it, where the reader of our output (`| head`) went away; it has silenced stdout.
        return READER_GONE
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    click.echo("rewind: " + " ".join(message.split()), err=True)
    return 2


def _fix_hash_seed(args: list[str]) -> None:
    """Start this process again under a known hash seed, where it is about to record.

    The order of a set of strings depends on the seed, which Python draws at start-up and tells nobody; given in the
    environment it is recorded, and a replay has the same order.
    """
    if args[:1] and args[0] in _RECORDING and not os.environ.get("PYTHONHASHSEED"):
        os.environ["PYTHONHASHSEED"] = str(secrets.randbelow(2**32))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
