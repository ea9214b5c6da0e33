"""Bundles over HTTP: photos in, guesses out, by the `run` room.

`run(settings)` serves until it is told to stop. One photo's way through it: `gate` (who asks, how large), `uploads`
(the body, within limits), the bundle's own pixel contract in a few threads, `batching` (photos that wait together go
into the network together, in one thread), `app` (the answer as JSON).
"""

from __future__ import annotations

import importlib

from handlens.errors import missing_extra
from handlens.serve.limits import Limits, Settings

__all__ = ["Limits", "Settings", "run"]

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "cryptography", "segno")


def run(settings: Settings) -> None:
    """Serve `settings.bundles` until SIGTERM or Ctrl-C; what is under way is answered before it ends.

    Raises HandlensError when a bundle cannot be served, when the address is taken, for a certificate or key that
    cannot be used, and when the extra `serve` is not installed.
    """
    for package in _NEEDED:
        try:
            importlib.import_module(package)
        except ImportError:
            raise missing_extra("serve", package) from None
    from handlens.serve import server

    server.run(settings)
