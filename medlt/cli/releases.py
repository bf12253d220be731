"""Commands on what leaves: release, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medlt.cli.app import Commands, app
from medlt.cli.edge import Json, Volume, edge, example, path, text


class Releases(Commands):
    """A group that takes `medlt release RUN OUT` for `medlt release make RUN OUT`."""

    usual = "make"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that was typed, else the usual one."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = [self.usual, *args]
        return super().resolve_command(ctx, args)


release = typer.Typer(
    cls=Releases,
    help="Write the folder that may leave, with hashes and its privacy claim, or verify one.",
    epilog=example("medlt release runs/mine OUT", "medlt release verify OUT"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(release, name="release")


@release.callback()
def group() -> None:
    """Write the folder that may leave, with hashes and its privacy claim, or verify one."""


@release.command(
    epilog=example("medlt release runs/mine OUT", "medlt release runs/mine OUT --sign key.pem --signer 'City Hospital'")
)
def make(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder; only read.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; nothing is overwritten.")],
    sign: Annotated[
        Path | None, path("Private ed25519 key (PEM, of openssl) that signs release.json.", "--sign")
    ] = None,
    signer: Annotated[str, text("Who signs, for the signature's comment.", "--signer")] = "",
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Write what may leave a run: images, labels, weights and cards, as `medlt release RUN OUT`.

    OUT/release.json has the SHA-256 of every file, the privacy claim, the ledger without counts and digests of
    patients, and a deployment record in the terms of NIST SP 800-226. A run without a claim is released too, and the
    first line says so. Signatures are those of minisign.
    """
    with edge(as_json, volume) as terminal:
        from medlt.export.release import build_release

        record = build_release(run, out, sign, signer)
        claimed = record["claim"]
        lines = [claimed["sentence"], f"release: {out}, {len(record['files'])} files and release.json"]
        lines += [f"signed; public key: {record['key']}"] if "key" in record else []
        summary = {"out": str(out), "epsilon": claimed["epsilon"], "sentence": claimed["sentence"]}
        terminal.show_lines({**summary, "files": len(record["files"]), "key": record.get("key")}, lines)


@release.command(epilog=example("medlt release verify OUT", "medlt release verify OUT --key key.pub"))
def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a release; only read.")],
    key: Annotated[str | None, text("Public key of the signer: that of minisign, or a file.", "--key")] = None,
    as_json: Json = False,
    volume: Volume = None,
) -> None:
    """Check every file of a release, that there is no other, and that claim, ledger and record agree.

    The claim itself was made where the patients are; here only its arithmetic can be done again. With --key also who
    signed it. Exit code 1: something does not agree.
    """
    with edge(as_json, volume) as terminal:
        from medlt.export.release_check import verify_release

        result = verify_release(out, key)
        lines = [result["sentence"], *result["problems"]]
        if result["signed"]:
            lines.append(f"signed: {result['signed']}")
        elif result["signature"] and key is None:
            lines.append("signed, but by whom was not checked; give --key")
        lines.append(f"{out}: {result['files']} files, {len(result['problems'])} problems")
        terminal.show_lines({"out": str(out), **result}, lines)
    if result["problems"]:
        raise typer.Exit(1)
