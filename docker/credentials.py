# /// script
# requires-python = ">=3.11"
# dependencies = ["cryptography>=50,<51"]
# ///
"""Make what a federation with TLS and SuperNode authentication needs, all of it on curve P-384.

`uv run docker/credentials.py --host fl.example.org --device device-1` writes below
`docker/credentials`

    ca.crt ca.key              our own authority; the key signs and stays where it is
    server.crt server.key      the server's certificate, for all names that devices know it by
    server.secret              shared by the SuperLink and the process that starts ServerApps
    operator/config.toml       what Flower's commands need, as FLWR_HOME
    devices/device-1.pub       the device's public key, for the SuperLink
    device-1/node.key          its private key, in OpenSSH's format, as Flower wants it
    device-1/superexec.secret  shared by its SuperNode and the process that starts ClientApps

Private files have mode 0600. Nothing is ever overwritten. An authority that is there already signs
the new certificate: move server.crt and server.key away, and a new pair is made.
"""

import argparse
import datetime
import ipaddress
import os
import re
import secrets
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FOLDER = Path(__file__).resolve().parent / "credentials"
# Names inside compose, and of a machine for itself.
OWN_NAMES = ("localhost", "127.0.0.1", "superlink", "gateway")
AUTHORITY_DAYS = 3650
# Apple's systems refuse server certificates that are valid for longer.
SERVER_DAYS = 825
SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_OPERATOR = """\
# Flower's commands on the server, or through `ssh -L 8000:127.0.0.1:8000 SERVER`.
[superlink]
default = "docker"

[superlink.docker]
address = "127.0.0.1:8000"
root-certificates = "{authority}"
"""


class CredentialsError(Exception):
    """Something that whoever runs this can mend."""


def make(folder: Path, hosts: list[str], devices: list[str]) -> list[Path]:
    """Write the files of a server, if it has names, and of devices.

    Args:
        folder: made where it is missing.
        hosts: names and addresses by which devices reach the server; none: no server's files.
        devices: their names.

    Returns:
        The files, in the order they were written.

    Raises:
        CredentialsError: a name cannot be used, or a file is there already; nothing was written.
    """
    for name in devices:
        if not _NAME.fullmatch(name) or name in ("devices", "operator"):
            raise CredentialsError(
                f"a device cannot be called {name!r}: letters, digits and inner hyphens, at most 63"
            )
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *OWN_NAMES])]
    folder = folder.absolute()
    files: dict[Path, tuple[bytes, int]] = {}
    if hosts:
        files |= _server(folder, names)
    for name in dict.fromkeys(devices):
        files |= _device(folder, name)
    there = [str(path) for path in files if path.exists()]
    if there:
        raise CredentialsError(f"there already: {', '.join(there)}; move it away to make a new one")
    for path, (content, mode) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content, mode)
    return list(files)


def _server(folder: Path, names: list[x509.GeneralName]) -> dict[Path, tuple[bytes, int]]:
    files: dict[Path, tuple[bytes, int]] = {}
    key = ec.generate_private_key(ec.SECP384R1())
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    if key_file.exists() and certificate_file.exists():
        loaded = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise CredentialsError(f"{key_file} is no key of this script")
        authority_key = loaded
        authority = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    else:
        authority_key = ec.generate_private_key(ec.SECP384R1())
        authority = _authority(authority_key)
        files[certificate_file] = _pem(authority), 0o644
        files[key_file] = _private(authority_key), 0o600
        files[folder / "server.secret"] = secrets.token_bytes(SECRET_BYTES), 0o600
        settings = _OPERATOR.format(authority=certificate_file)
        files[folder / "operator" / "config.toml"] = settings.encode(), 0o644
    files[folder / "server.crt"] = _pem(_signed(key, names, authority, authority_key)), 0o644
    files[folder / "server.key"] = _private(key), 0o600
    return files


def _device(folder: Path, name: str) -> dict[Path, tuple[bytes, int]]:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return {
        folder / name / "node.key": (private, 0o600),
        folder / name / "superexec.secret": (secrets.token_bytes(SECRET_BYTES), 0o600),
        folder / "devices" / f"{name}.pub": (public + f" {name}\n".encode(), 0o644),
    }


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedistill federation")])
    return (
        _builder(name, key.public_key(), AUTHORITY_DAYS)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _signed(
    key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedistill server")])
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(name, key.public_key(), SERVER_DAYS)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _builder(name: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks of devices may be late.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
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


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not all(_NAME.fullmatch(label) for label in host.split(".")):
        raise CredentialsError(
            f"--host is {host!r}; accepted: a name such as fl.example.org or an address such as "
            "192.0.2.7, without port or https://"
        )
    return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    # Exclusive, and with its mode from the first byte on: at no time can others read a key.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 means a mistake in what was asked for."""
    parser = argparse.ArgumentParser(
        description="Make certificates and keys of a federation; nothing is ever overwritten."
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="name or address by which devices reach the server; as often as there are; "
        "without it no server's files are made",
    )
    parser.add_argument(
        "--device", action="append", default=[], metavar="NAME", help="as often as there are"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.host and not options.device:
        parser.error("nothing to make; give --host NAME for a server, --device NAME for a device")
    try:
        files = make(options.output, options.host, options.device)
    except (CredentialsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in files:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
