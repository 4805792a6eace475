"""The official Python MCP client at one door of the port: list, call, call a stranger.

client.py (http URL | stdio COMMAND [ARG...]) reads one JSON line: [mode, tool, arguments].
It prints one JSON line with what came, progress too.
"""

import asyncio
import json
import sys

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters


async def main() -> None:
    door, *target = sys.argv[1:]
    mode, tool, arguments = json.loads(sys.stdin.readline())
    server = target[0] if door == "http" else StdioServerParameters(command=target[0], args=target[1:])
    async with Client(server, mode=mode) as client:
        tools = sorted(tool.name for tool in (await client.list_tools()).tools)
        progress = []

        async def on_progress(done: float, total: float | None, message: str | None) -> None:
            progress.append(done)

        result = await client.call_tool(tool, arguments, progress_callback=on_progress)
        refused = None
        try:
            refused = (await client.call_tool("no.such", {})).is_error
        except Exception as error:  # whatever the client makes of a refusal
            refused = type(error).__name__
    print(json.dumps({"tools": tools, "refused": refused, "error": result.is_error, "progress": progress,
                      "text": [getattr(part, "text", "") for part in result.content]}))


asyncio.run(main())
