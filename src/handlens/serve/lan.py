"""For phones on the local network: this machine's addresses, a certificate for them, and a QR code.

A browser gives its camera and a service worker only to pages that come over TLS. The certificate is signed by an
authority of our own, made once and kept in the cache folder. A phone that trusts the authority trusts this machine, and
loses nothing by it: the authority is bound, by name constraints in its own certificate, to private addresses and
`.local` names; a thief of its key could not play anybody's bank.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

import segno
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handlens import files
from handlens.errors import HandlensError

AUTHORITY_DAYS = 3650
DAYS = 365  # of the machine's certificate: phones refuse those of more than 398
RENEW_DAYS = 30
PRIVATE = (
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8",
    "fc00::/7", "fe80::/10", "::1/128",
)  # fmt: skip
LOCAL_NAMES = ("localhost", "local")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Certificate(NamedTuple):
    """Files: the machine's certificate and its key, and the authority that a phone may trust."""

    cert: Path
    key: Path
    authority: Path


def addresses() -> list[Address]:
    """This machine's addresses on local networks, the one that others most likely reach first."""
    found: list[str] = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))  # nothing is sent: it only chooses the way out
            found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)]
    known = dict.fromkeys(ipaddress.ip_address(address.partition("%")[0]) for address in found)
    return [ip for ip in known if is_local(ip) and not ip.is_loopback and not ip.is_link_local]


def is_local(address: str | Address) -> bool:
    """Whether an address is a private one, of this machine or link-local, also as IPv6 writes those of IPv4."""
    ip = ipaddress.ip_address(str(address).partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in ipaddress.ip_network(network) for network in PRIVATE)


def certificate(folder: Path, local: list[Address]) -> Certificate:
    """A certificate for these addresses and localhost, made now unless the folder has one for them that lasts.

    Raises HandlensError when the folder cannot be written or holds something else.
    """
    paths = Certificate(folder / "machine.pem", folder / "machine.key", folder / "authority.crt")
    authority_key = folder / "authority.key"
    try:
        if not paths.authority.exists() or not authority_key.exists() or _ends_soon(paths.authority):
            key = ec.generate_private_key(ec.SECP256R1())
            _write_key(authority_key, key)
            _write(paths.authority, _authority(key).public_bytes(serialization.Encoding.PEM))
            paths.cert.unlink(missing_ok=True)
        if (
            not paths.cert.exists()
            or not paths.key.exists()
            or _ends_soon(paths.cert)
            or _names(paths.cert) != set(local)
        ):
            key = ec.generate_private_key(ec.SECP256R1())
            issuer = x509.load_pem_x509_certificate(paths.authority.read_bytes())
            issuer_key = serialization.load_pem_private_key(authority_key.read_bytes(), None)
            if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
                raise ValueError("not an elliptic curve's key")
            made = _machine(key, issuer, issuer_key, local)
            _write_key(paths.key, key)
            _write(paths.cert, made.public_bytes(serialization.Encoding.PEM))
    except ValueError as error:
        raise HandlensError(f"the certificates in {folder} are damaged", "remove that folder") from error
    return paths


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"handlens on {_hostname()[:50]}")])  # at most 64
    permitted = [x509.IPAddress(ipaddress.ip_network(network)) for network in PRIVATE]
    names = [x509.DNSName(name) for name in LOCAL_NAMES]
    return (
        _dated(AUTHORITY_DAYS)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.NameConstraints([*permitted, *names], None), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _machine(
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    local: list[Address],
) -> x509.Certificate:
    names = [x509.DNSName("localhost"), x509.DNSName(f"{_hostname()}.local")]
    ips = [x509.IPAddress(address) for address in (*local, *map(ipaddress.ip_address, ("127.0.0.1", "::1")))]
    return (
        _dated(DAYS)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "handlens serve")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([*names, *ips]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _dated(days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    begun = now - datetime.timedelta(days=1)  # a phone's clock may be behind
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(begun)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hostname() -> str:
    return re.sub(r"[^a-z0-9-]", "-", socket.gethostname().lower().partition(".")[0])[:60].strip("-") or "machine"


def _ends_soon(path: Path) -> bool:
    ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return ends < datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=RENEW_DAYS)


def _names(path: Path) -> set[Address]:
    """The addresses that a certificate is for, without loopback."""
    made = x509.load_pem_x509_certificate(path.read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.IPAddress)
    return {ip for ip in found if isinstance(ip, (ipaddress.IPv4Address, ipaddress.IPv6Address)) and not ip.is_loopback}


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.unlink(missing_ok=True)
    before = os.umask(0o077)  # for its owner only
    try:
        _write(path, pem)
    finally:
        os.umask(before)


def _write(path: Path, content: bytes) -> None:
    with files.atomic(path) as file:
        file.write(content)


def qr(text: str) -> str:
    """A QR code for a terminal, of half blocks."""
    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawn, compact=True)
    return drawn.getvalue()
