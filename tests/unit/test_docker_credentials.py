"""Certificates and keys of a deployment: they work, are private, and are never replaced."""

import importlib.util
import ssl
import stat
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

DOCKER = Path(__file__).resolve().parents[2] / "docker"
HOSTS = ["fl.example.org", "192.0.2.7"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("credentials", DOCKER / "credentials.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


credentials = load()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credentials") / "new"
    credentials.make(folder, HOSTS, ["device-1", "device-2"])
    return folder


def shake_hands(folder: Path, authority: Path, name: str) -> str:
    """A TLS handshake in memory, as a device would do it; returns the protocol's version."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=str(authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return str(ends[0].version())


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [*HOSTS, "localhost", "127.0.0.1", "superlink", "gateway"])
def test_the_server_is_trusted_under_its_names(made: Path, name: str) -> None:
    assert shake_hands(made, made / "ca.crt", name) == "TLSv1.3"


def test_the_server_is_not_trusted_under_another_name(made: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(made, made / "ca.crt", "other.example.org")


def test_another_authority_is_not_trusted(made: Path, tmp_path: Path) -> None:
    credentials.make(tmp_path / "other", HOSTS, [])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(made, tmp_path / "other" / "ca.crt", HOSTS[0])


def test_the_certificate_of_the_server_signs_nothing(made: Path) -> None:
    certificate = x509.load_pem_x509_certificate((made / "server.crt").read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName)[0] == "fl.example.org"
    assert str(names.get_values_for_type(x509.IPAddress)[0]) == "192.0.2.7"


def test_keys_of_devices_are_what_flower_takes(made: Path) -> None:
    publics = []
    for name in ("device-1", "device-2"):
        private = serialization.load_ssh_private_key((made / name / "node.key").read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.curve.name == "secp384r1"
        text = (made / "devices" / f"{name}.pub").read_bytes()
        public = serialization.load_ssh_public_key(text)
        assert public == private.public_key()
        assert text.startswith(b"ecdsa-sha2-nistp384 ")
        publics.append(text)
    assert publics[0] != publics[1]


def test_private_files_are_private_and_secrets_differ(made: Path) -> None:
    modes = {
        str(path.relative_to(made)): stat.S_IMODE(path.stat().st_mode) for path in content(made)
    }
    private = {path for path, mode in modes.items() if mode == 0o600}
    assert private == {
        "ca.key",
        "server.key",
        "server.secret",
        *(f"device-{n}/{file}" for n in "12" for file in ("node.key", "superexec.secret")),
    }
    secrets = {data for path, data in content(made).items() if path.suffix == ".secret"}
    assert len(secrets) == 3
    assert {len(secret) for secret in secrets} == {32}


def test_compose_finds_all_its_secrets(made: Path) -> None:
    text = (DOCKER / "compose.tls.yaml").read_text().replace("!override", "")
    for secret in yaml.safe_load(text)["secrets"].values():
        assert (made.parent / secret["file"].replace("credentials", "new", 1)).is_file(), secret


def test_the_operator_gets_the_settings_of_flower(made: Path) -> None:
    settings = tomllib.loads((made / "operator" / "config.toml").read_text())["superlink"]
    entry = settings[settings["default"]]
    assert entry["address"] == "127.0.0.1:8000"
    assert Path(entry["root-certificates"]) == made / "ca.crt"


def test_nothing_is_overwritten(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(made)
    for asked in (["--host", "a"], ["--device", "device-1"], ["--device", "new", "--host", "a"]):
        assert credentials.main([*asked, "--output", str(made)]) == 2
        assert "there already" in capsys.readouterr().err
    assert content(made) == before


def test_a_device_needs_no_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert credentials.main(["--device", "device-3", "--output", str(tmp_path)]) == 0
    files = {str(path.relative_to(tmp_path)) for path in content(tmp_path)}
    expected = {"device-3/node.key", "device-3/superexec.secret", "devices/device-3.pub"}
    assert files == expected
    assert set(capsys.readouterr().out.split()) == {str(tmp_path / file) for file in files}


def test_a_new_certificate_comes_from_the_same_authority(tmp_path: Path) -> None:
    credentials.make(tmp_path, ["old.example.org"], [])
    before = content(tmp_path)
    (tmp_path / "server.crt").unlink()
    (tmp_path / "server.key").unlink()
    made = credentials.make(tmp_path, ["new.example.org"], [])
    assert [path.name for path in made] == ["server.crt", "server.key"]
    shake_hands(tmp_path, tmp_path / "ca.crt", "new.example.org")
    changed = {path.name for path, data in content(tmp_path).items() if before[path] != data}
    assert changed == {"server.crt", "server.key"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--device", "../x"], "cannot be called '../x'"),
        (["--device", "operator"], "cannot be called 'operator'"),
        (["--host", "https://fl.example.org"], "without port or https://"),
        (["--host", "fl.example.org:8443"], "without port or https://"),
    ],
)
def test_names_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], said: str
) -> None:
    assert credentials.main([*asked, "--output", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert content(tmp_path) == {}


def test_nothing_asked_for_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        credentials.main([])
    assert ended.value.code == 2
    assert "--host NAME" in capsys.readouterr().err
