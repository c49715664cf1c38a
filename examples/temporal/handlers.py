"""A Temporal worker whose Nexus operations are called through the mesh: one that answers at once, one that waits."""

import asyncio
import os
from dataclasses import dataclass

import nexusrpc
from nexusrpc.handler import StartOperationContext, service_handler, sync_operation
from temporalio import nexus, workflow
from temporalio.client import Client
from temporalio.worker import Worker

MANAGER_MAX_EUROS = 1000


@dataclass
class Spending:
    order: int
    euros: int


@nexusrpc.service
class Approvals:
    """`rule` says who decides; `ask` ends when somebody has decided, after minutes or weeks."""

    rule: nexusrpc.Operation[int, str]
    ask: nexusrpc.Operation[Spending, str]


@workflow.defn
class Approval:
    def __init__(self) -> None:
        self.decision = ""

    @workflow.signal
    def decide(self, decision: str) -> None:
        self.decision = decision

    @workflow.run
    async def run(self, spending: Spending) -> str:
        await workflow.wait_condition(lambda: self.decision != "")
        return f"order {spending.order}: {self.decision}"


@service_handler(service=Approvals)
class ApprovalsHandler:
    @sync_operation
    async def rule(self, ctx: StartOperationContext, euros: int) -> str:
        return "your manager" if euros <= MANAGER_MAX_EUROS else "the board"

    @nexus.workflow_run_operation
    async def ask(self, ctx: nexus.WorkflowRunOperationContext, spending: Spending) -> nexus.WorkflowHandle[str]:
        # A start may come twice. It is one workflow only because its id says so: made of the input as here, or of
        # ctx.request_id, which is the same on every attempt.
        return await ctx.start_workflow(Approval.run, spending, id=f"approval-{spending.order}")


async def main() -> None:
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "localhost:7233"))
    worker = Worker(client, task_queue="approvals", workflows=[Approval], nexus_service_handlers=[ApprovalsHandler()])
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
