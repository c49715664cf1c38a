"""A Temporal workflow that calls an agent of the mesh, the one of examples/agent.py: `python caller.py Ada`."""

import asyncio
import os
import sys
from datetime import timedelta

import nexusrpc
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker


@nexusrpc.service(name="greeter")
class Greeter:
    """What the agent offers, as its callers see it."""

    greet: nexusrpc.Operation[str, str]


@workflow.defn
class Welcome:
    @workflow.run
    async def run(self, name: str) -> str:
        greeter = workflow.create_nexus_client(service=Greeter, endpoint="greeter")
        return await greeter.execute_operation(Greeter.greet, name, schedule_to_close_timeout=timedelta(minutes=5))


async def main(name: str) -> None:
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "localhost:7233"))
    async with Worker(client, task_queue="welcome", workflows=[Welcome]):
        print(await client.execute_workflow(Welcome.run, name, id=f"welcome-{name}", task_queue="welcome"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
