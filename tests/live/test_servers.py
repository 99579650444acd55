"""Servers from the command line, against a real process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.engine.servers.double import doubled
from tests.live.server import Server
from tests.live.test_cli import Answer, Cli


async def test_servers_from_the_command_line(tmp_path: Path) -> None:
    """Register, list, show, check, update, take out of service, delete; what goes wrong is one line and a code."""
    cli = Cli(tmp_path)

    async def run(*arguments: str) -> Answer:
        return await asyncio.to_thread(cli, "servers", *arguments)

    async with Server(tmp_path / "data"), doubled() as double:
        listed = await run()
        assert (listed.code, "ONLINE" in listed.out, "  local  " in listed.out) == (0, True, True), listed
        made = await run(
            "register", "gpu", double.url, "--type", "http", "--server-token", "secret", "--batch-size", "3"
        )
        assert made.code == 0, made
        assert made.out.startswith("srv-")
        assert "gpu: OK" in made.err
        shown = json.loads((await run("show", "gpu")).out)
        assert (shown["id"], shown["status"]) == (made.out.strip(), "ONLINE")
        double.fault = "html"
        checked = await run("check", "gpu")
        assert (checked.code, "WRONG_ANSWER" in checked.out, "no JSON" in checked.out or "not JSON" in checked.out) == (
            1,
            True,
            True,
        )
        assert (await run("update", "gpu", "--batch-size", "4", "--disable")).out == "gpu: changed\n"
        assert (await run("status", "gpu", "maintenance")).out == "gpu: MAINTENANCE\n"
        for arguments, said in (
            (("register", "b", "file:///x", "--type", "http"), "/url: A server's URL begins with"),
            (("register", "b", "http://x", "--type", "ftp"), "There is no type 'ftp'"),
            (("check", "nowhere"), "There is no server 'nowhere'"),
        ):
            refused = await run(*arguments)
            assert (refused.code, said in refused.err) == (2, True), refused
        assert (await run("delete", "gpu")).out == "gpu: deleted\n"
