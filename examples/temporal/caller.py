"""A Temporal worker whose workflow calls an agent of the mesh, the one of examples/agent.py."""

import asyncio
import os
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


async def main() -> None:
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "localhost:7233"))
    await Worker(client, task_queue="welcome", workflows=[Welcome]).run()


if __name__ == "__main__":
    asyncio.run(main())
