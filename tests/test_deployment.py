"""What is shipped for containers names settings, commands and files that there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from mirrorflow import settings
from mirrorflow.cli import app
from mirrorflow.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}
#: For compose itself, not for the program.
COMPOSE_ONLY = {"MIRRORFLOW_VERSION"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return read


def given(name: str, compose: dict[str, Any]) -> dict[str, str]:
    """A service's environment with compose's own variables filled in."""
    filled = {"POSTGRES_PASSWORD": "p" * 32, "REDIS_PASSWORD": "r" * 32, "MIRRORFLOW_SECRET_KEY": "s" * 48}

    def value(found: re.Match[str]) -> str:
        variable, _, default = found[1].partition(":")
        return filled.get(variable, default[1:] if default.startswith("-") else "")

    environment: dict[str, Any] = compose["services"][name]["environment"]
    return {key: re.sub(r"\$\{([^}]*)\}", value, str(each)) for key, each in environment.items()}


def arguments(command: str) -> set[str]:
    """The options of one of our commands."""
    group: Any = get_command(app)
    return {option for each in group.commands[command].params for option in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_settings_of_a_service_can_be_used(
    name: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each name is a setting's, and all values together load."""
    monkeypatch.chdir(tmp_path)
    environment = given(name, compose)
    assert environment.keys() <= SETTINGS
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    read = settings.load(data_dir=tmp_path)
    assert not read.alone
    assert read.redis is not None
    assert compose["services"][name]["stop_grace_period"] == "45s"
    assert read.grace_seconds < 45


def test_the_commands_are_ours(compose: dict[str, Any]) -> None:
    """Service by service, with options that the command has."""
    for name, command in (("api", "serve"), ("worker", "worker")):
        first, *options = compose["services"][name]["command"]
        assert first == command
        assert set(options) <= arguments(command)


def test_whatever_has_an_order_waits_for_health(compose: dict[str, Any]) -> None:
    """Every service is watched (ours by the image), and ours wait for what they stand on."""
    services = compose["services"]
    assert set(services) == {"api", "worker", "redis", "postgres"}
    for name in ("redis", "postgres"):
        assert services[name]["healthcheck"]["test"][0] == "CMD-SHELL"
    for name in ("api", "worker"):
        assert {on: how["condition"] for on, how in services[name]["depends_on"].items()} == {
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }
        assert "data:/data" in services[name]["volumes"]
    assert services["worker"]["deploy"]["replicas"] == 2
    assert "container_name" not in services["worker"]  # or --scale fails
    assert "ports" not in services["worker"]


def test_only_the_api_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    """Without TLS nothing listens to the world."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


def test_what_compose_asks_for_is_in_the_example() -> None:
    """Every variable without a default has its line in docs/env.example."""
    text = (ROOT / "docker-compose.yml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    example = dict(re.findall(r"(?m)^(\w+)=(.*)$", (ROOT / "docs" / "env.example").read_text()))
    assert asked <= example.keys()
    assert not any(example.values())  # a password that is published is none
    named = {name for name in re.findall(r"\$\{(\w+)", text) if name.startswith(PREFIX)}
    assert named <= SETTINGS | COMPOSE_ONLY


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]  # type: ignore[misc]


def test_the_image_is_made_of_what_is_there() -> None:
    """Every file that is copied exists and is let into the build."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for instruction, rest in steps():
        if instruction != "COPY" or rest.startswith("--from"):
            continue
        *sources, _ = shlex.split(rest)
        for source in sources:
            assert (ROOT / source).exists(), source
            top = source if not source.startswith("web/") else "web/graphiql"
            assert f"!{top}" in ignored, source
    for room in ("flow", "db", "engine", "graph", "mirrorflow"):
        assert ("COPY", f"{room} {room}") in steps()


def test_the_image_runs_as_nobody_special_and_is_watched() -> None:
    """Not as root; the health check asks the port on which both kinds of process answer."""
    instructions = dict(steps())
    assert instructions["USER"] == "mirrorflow"
    assert json.loads(instructions["ENTRYPOINT"]) == ["mirrorflow"]
    assert json.loads(instructions["CMD"]) == ["serve"]
    environment = dict(part.split("=", 1) for part in shlex.split(instructions["ENV"]))
    assert {name for name in environment if name.startswith(PREFIX)} <= SETTINGS
    port = environment["MIRRORFLOW_PORT"]
    assert environment["MIRRORFLOW_HEALTH_PORT"] == port
    assert f"http://127.0.0.1:{port}/health/ready" in instructions["HEALTHCHECK"]
    assert len([True for instruction, _ in steps() if instruction == "FROM"]) == 3


def test_deploy_tells_only_of_what_there_is() -> None:
    """Settings and commands in docs/deploy.md exist."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    assert set(re.findall(r"MIRRORFLOW_[A-Z_]+", text)) <= SETTINGS | COMPOSE_ONLY
    for command in re.findall(r"`mirrorflow ([a-z]+)", text):
        assert arguments(command) is not None
