"""The files of docker/, checked without an engine: what they name exists, nothing is left open."""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from installed import DOCKER, ROOT, help_of
from packaging.requirements import Requirement

from fedistill import config_file

STACKS = {
    "plain": ("compose.yaml",),
    "tls": ("compose.yaml", "compose.tls.yaml"),
    "gpu": ("compose.yaml", "compose.tls.yaml", "compose.gpu.yaml"),
    "device": ("compose.device.yaml",),
    "device with a GPU": ("compose.device.yaml", "compose.device.gpu.yaml"),
}
REPLACED = ("command", "entrypoint", "test")  # lists that a later file does not append to
ONCE = ("register",)
Tree = dict[str, Any]


class Override(list[Any]):
    """A list with Compose's tag !override: it replaces what an earlier file says."""


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!override", lambda loader, node: Override(loader.construct_sequence(node)))


def merge(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        both = {name: merge(below[name], above[name], name) for name in below.keys() & above}
        return {**below, **above, **both}
    if isinstance(below, list) and key not in REPLACED and not isinstance(above, Override):
        return [*below, *above]
    return above


@cache
def stack(name: str) -> Tree:
    tree: Tree = {}
    for file in STACKS[name]:
        tree = merge(tree, yaml.load((DOCKER / file).read_text(), Loader))
    return tree


def services(*names: str) -> list[Any]:
    return [
        pytest.param(name, service, id=f"{name}: {service}")
        for name in names or STACKS
        for service in stack(name)["services"]
    ]


def networks(service: Tree) -> set[str]:
    return set(service["networks"])


def instructions(name: str) -> Iterator[tuple[str, str]]:
    """The steps of the Dockerfile, without comments, each on one line."""
    text = re.sub(r"^#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            yield tuple(line.split(maxsplit=1))  # type: ignore[misc]


@pytest.mark.parametrize(("name", "service"), services())
def test_every_process_is_confined_and_comes_back(name: str, service: str) -> None:
    tree = stack(name)["services"][service]
    assert tree["user"] == "${FEDISTILL_UID:-1000}"
    assert tree["read_only"] is True
    assert tree["cap_drop"] == ["ALL"]
    assert tree["security_opt"] == ["no-new-privileges:true"]
    assert not tree.get("privileged")
    # Docker's back-off belongs to these two policies; "no" would leave a killed process dead.
    assert tree["restart"] == ("on-failure:5" if service in ONCE else "unless-stopped")
    assert service in ONCE or tree["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize(("name", "service"), services())
def test_every_image_is_ours_or_has_a_version(name: str, service: str) -> None:
    image = stack(name)["services"][service]["image"]
    ours = image == "fedistill:${TORCH_BACKEND:-cpu}"
    assert ours or re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+(-[a-z]+)?", image)


@pytest.mark.parametrize(("name", "service"), services())
def test_what_is_mounted_exists(name: str, service: str) -> None:
    tree = stack(name)
    folders = next(text for step, text in instructions("Dockerfile") if "install -d" in text)
    for mount in tree["services"][service].get("volumes", []):
        found = re.fullmatch(r"(\$\{[^}]*\}|[^:]*):([^:]*)(:ro)?", mount)
        assert found, mount
        source, target, read_only = found.groups()
        default = re.fullmatch(r"\$\{\w+:([-?])(.*)\}", source)
        if default:
            source = default[2] if default[1] == "-" else ""
        if source.startswith("./"):
            assert read_only, mount
            made = source.startswith("./credentials/")  # by credentials.py: see its tests
            assert made or (DOCKER / source).exists(), mount
        elif source:
            assert source in tree["volumes"], mount
        if not read_only:  # a new volume takes over the owner of the image's folder
            assert target in folders.split(), mount


@pytest.mark.parametrize("name", STACKS)
def test_what_is_declared_is_used(name: str) -> None:
    tree = stack(name)
    used = [str(service) for service in tree["services"].values()]
    for kind in ("volumes", "secrets", "networks"):
        for declared in tree.get(kind, {}):
            assert any(declared in text for text in used), f"{kind}: {declared}"
    for service in tree["services"].values():
        assert networks(service) <= tree["networks"].keys()
        assert set(service.get("secrets", [])) <= tree.get("secrets", {}).keys()
        assert set(service.get("depends_on", {})) <= tree["services"].keys()


@pytest.mark.parametrize(("name", "service"), services("plain", "tls", "device"))
def test_commands_use_flags_that_the_installed_programs_know(name: str, service: str) -> None:
    tree = stack(name)["services"][service]
    command = tree["command"]
    flags = {part.split("=")[0] for part in command if part.startswith("--")}
    if command[0].startswith("flower-"):
        known = help_of(command[0])
    elif command[0] == "mlflow":
        known = help_of("mlflow", "server")
    else:
        assert not flags
        return
    assert flags
    unknown = [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", known)]
    assert unknown == []


@pytest.mark.parametrize(("name", "service"), services("tls", "device"))
def test_secrets_are_where_commands_look_for_them(name: str, service: str) -> None:
    tree = stack(name)["services"][service]
    text = " ".join([*tree["command"], *tree.get("healthcheck", {}).get("test", [])])
    if tree["command"][0] == "nginx":
        text = (DOCKER / "gateway.conf").read_text()
    assert set(re.findall(r"/run/secrets/([\w.-]+)", text)) == set(tree.get("secrets", []))


@pytest.mark.parametrize("name", ["tls", "device"])
def test_only_the_gateway_faces_the_network(name: str) -> None:
    for service, tree in stack(name)["services"].items():
        for port in tree.get("ports", []):
            assert service == "gateway" or port.startswith("127.0.0.1:"), (service, port)
    assert name == "device" or networks(stack(name)["services"]["superlink"]) == {"server"}


@pytest.mark.parametrize("name", ["plain", "tls", "device"])
def test_code_of_a_run_sees_neither_the_key_of_its_device_nor_the_network(name: str) -> None:
    tree = stack(name)
    found = [service for service in tree["services"] if service.startswith("clientapp")]
    assert len(found) == (1 if name == "device" else 2)
    for service in found:
        only = networks(tree["services"][service])
        assert all(tree["networks"][network]["internal"] for network in only)
        neighbours = [other for other, its in tree["services"].items() if only & networks(its)]
        assert sorted(neighbours) == [service, service.replace("clientapp", "supernode")]
        assert not any("key" in secret for secret in tree["services"][service].get("secrets", []))
        node = tree["services"][service.replace("clientapp", "supernode")]
        assert not any("/data" in mount for mount in node["volumes"])


@pytest.mark.parametrize("name", ["tls", "device"])
def test_plain_http_only_within_a_device(name: str) -> None:
    for service, tree in stack(name)["services"].items():
        inside = service.startswith("clientapp")
        assert ("--insecure" in tree["command"]) == inside, service
        if tree["command"][0].startswith("flower-"):
            secret = [part for part in tree["command"] if "superexec-auth-secret-file" in part]
            assert len(secret) == 1, service


def test_both_halves_of_a_pair_share_one_secret() -> None:
    tree = stack("tls")["services"]
    for first, second in [
        ("superlink", "serverapp"),
        *((f"supernode-{n}", f"clientapp-{n}") for n in "12"),
    ]:
        secrets = [set(tree[name]["secrets"]) for name in (first, second)]
        assert any(secret.endswith(".secret") for secret in secrets[0] & secrets[1])
    own = [{x for x in tree[f"supernode-{n}"]["secrets"] if x != "ca.crt"} for n in "12"]
    assert not own[0] & own[1]


def test_the_gateway_passes_on_the_fleet_api_alone() -> None:
    text = (DOCKER / "gateway.conf").read_text()
    locations = re.findall(r"location (.*?) \{ (.*?) \}", text)
    passed = {where for where, what in locations if what.startswith("proxy_pass")}
    assert passed == {"/v1/fleet/", "= /health"}
    assert len(re.findall(r"location /\s*\{ return 403; \}", text)) == text.count("server {") == 2
    assert "proxy_ssl_verify on;" in text


def test_the_fleet_api_lies_where_the_gateway_looks() -> None:
    from flwr.superlink.routers.control.router import router as control
    from flwr.superlink.routers.fleet.router import router as fleet

    assert fleet.prefix == "/v1/fleet"
    assert not control.prefix.startswith(fleet.prefix)


def test_the_dockerfile_pins_what_it_starts_from() -> None:
    arguments = dict(
        text.split("=", 1) for step, text in instructions("Dockerfile") if step == "ARG"
    )
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", arguments["BASE"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", arguments["UV_VERSION"])
    last = [text for step, text in instructions("Dockerfile") if step == "USER"]
    assert last == ["${UID}"]
    assert int(arguments["UID"]) > 0


def test_only_listed_files_enter_the_image() -> None:
    first, *rest = [
        line
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    copied = [
        source
        for step, text in instructions("Dockerfile")
        if step == "COPY" and not text.startswith("--from")
        for source in text.split()[:-1]
    ]
    assert sorted(f"!{source}" for source in copied) == sorted(rest)
    assert all((ROOT / source).is_file() for source in copied)


def test_the_versions_of_the_image_satisfy_the_project() -> None:
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if not line.startswith("#"))
    left_out = {
        line for line in (DOCKER / "excludes.txt").read_text().splitlines() if line[0] != "#"
    }
    assert left_out == {"ray"}
    assert not left_out & versions.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert versions[wanted.name] in wanted.specifier, text


@pytest.mark.parametrize("path", sorted((DOCKER / "devices").glob("*.toml")), ids=lambda p: p.stem)
def test_flower_reads_the_files_of_devices(path: Path) -> None:
    from flwr.common.config import parse_config_args

    assert parse_config_args([str(path)]) == tomllib.loads(path.read_text())
    assert path.stem == "device" or parse_config_args([str(path)])["name"] == path.stem


def test_the_devices_of_compose_divide_the_data_of_the_example() -> None:
    config = config_file.load(DOCKER / "example.yaml")
    nodes = [tomllib.loads((DOCKER / f"devices/device-{n}.toml").read_text()) for n in "12"]
    assert [node["partition-id"] for node in nodes] == [0, 1]
    assert {node["num-partitions"] for node in nodes} == {config.partition.clients} == {2}


def test_commands_of_the_readme_name_their_files() -> None:
    """`docker compose` finds none of ours by itself: they have other names, in another folder."""
    said = re.findall(r"docker compose ([^`\n]*)", (DOCKER / "README.md").read_text())
    commands = [text for text in said if text != "config"]  # it was run, and is not to be typed
    assert len(commands) > 8
    assert [text for text in commands if not text.startswith(("-f docker/", "... "))] == []
