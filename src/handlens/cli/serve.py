"""`handlens serve`: bundles over HTTP, for programs and for a browser."""

from __future__ import annotations

from pathlib import Path

import typer


def serve(
    bundle: list[str] = typer.Argument(
        None, metavar="BUNDLE", help="Bundles, as `handlens export` makes them; each is named as its file."
    ),
    named: list[str] = typer.Option([], "--bundle", metavar="NAME=PATH", help="A bundle with a name of its own."),
    host: str = typer.Option("127.0.0.1", help="The address to serve at; the default is for this machine only."),
    port: int = typer.Option(8000, min=0, max=65535, help="0: any that is free."),
    lan: bool = typer.Option(
        False, "--lan", help="For phones on this network: TLS by a certificate made here, QR code."
    ),
    threads: int = typer.Option(0, min=0, help="Threads that compute the network; 0: its runtime's choice."),
    keep: Path | None = typer.Option(
        None, help="Put photos that were answered wrongly into a folder of their class here."
    ),
    api_key_file: Path | None = typer.Option(
        None, help="A file with the key that requests must carry; also the variable HANDLENS_API_KEY."
    ),
    tls_cert: Path | None = typer.Option(None, help="A certificate (PEM), with --tls-key."),
    tls_key: Path | None = typer.Option(None, help="The certificate's key (PEM)."),
    max_body_mb: float = typer.Option(20.0, min=0.001, max=1e6, help="Megabytes of a request."),
    max_megapixels: float = typer.Option(50.0, min=0.001, max=1e6, help="Million pixels of a photo."),
    max_files: int = typer.Option(16, min=1, help="Photos of a request."),
    timeout_s: float = typer.Option(
        20.0, min=0.1, max=86_400, help="Seconds for a request to arrive, and again to be answered."
    ),
    queue: int = typer.Option(48, min=1, help="Photos taken on at once; with more the answer is 503."),
    wait_ms: float = typer.Option(
        3.0, min=0, max=60_000, help="Milliseconds that a photo waits at most for others to go with it."
    ),
) -> None:
    """Answer photos over HTTP, with the page at /, until Ctrl-C or SIGTERM; what is under way is answered before.

    POST /v1/predict takes photos as multipart, raw bytes or base64 in JSON; /docs tells the rest. A bundle must answer
    its golden photos as the trained network did, else nothing is served. When a bundle's file changes, the new version
    takes the old one's place without a request being lost.

    \b
    Examples:
      handlens serve flowers.zip
      handlens serve flowers-int8.zip flowers.zip --port 9000 --keep corrected-photos
      handlens serve --bundle flowers=flowers-int8.zip --host 0.0.0.0 --api-key-file key.txt
      handlens serve flowers.zip --lan
    """
    import os

    from handlens import serve as serve_room

    key = _read_key(api_key_file) if api_key_file else os.environ.get("HANDLENS_API_KEY", "")
    limits = serve_room.Limits(
        body_bytes=int(1e6 * max_body_mb),
        pixels=int(1e6 * max_megapixels),
        files=max_files,
        time_s=timeout_s,
        photos=queue,
        held_bytes=max(256_000_000, int(4e6 * max_body_mb)),
        wait_s=wait_ms / 1000,
    )
    serve_room.run(
        serve_room.Settings(
            bundles=names(bundle or [], named),
            host=host,
            port=port,
            threads=threads,
            lan=lan,
            tls_cert=tls_cert,
            tls_key=tls_key,
            api_key=key.strip(),
            keep=keep,
            limits=limits,
        )
    )


def names(paths: list[str], named: list[str]) -> dict[str, Path]:
    """Each bundle's path by its name: what stands before the "=", or the file's name without its ending.

    Raises HandlensError for a name that cannot stand in an address, and for two bundles of one name.
    """
    import re

    from handlens.errors import HandlensError

    found: dict[str, Path] = {}
    pairs = [(Path(path).stem if path.endswith(".zip") else Path(path).name, path) for path in paths]
    for given in named:
        name, equals, path = given.partition("=")
        if not equals or not path:
            raise HandlensError(f"--bundle {given} is no NAME=PATH", "write --bundle flowers=flowers.zip")
        pairs.append((name, path))
    for name, path in pairs:
        if not re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII):
            raise HandlensError(
                f"{name!r} cannot be a model's name, expected letters, digits and ._-", "give one: --bundle NAME=PATH"
            )
        if name in found:
            raise HandlensError(f"two bundles are named {name}", "give one another name: --bundle NAME=PATH")
        found[name] = Path(path)
    return found


def _read_key(path: Path) -> str:
    from handlens.errors import HandlensError

    try:
        key = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeError):
        raise HandlensError(f"the API key in {path} cannot be read", "check the path") from None
    if not key:
        raise HandlensError(f"{path} is empty, expected an API key", "put one line into it")
    return key
