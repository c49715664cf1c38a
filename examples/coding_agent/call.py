"""Call the coding agent, and watch it: interrupt this program, or kill the agent, and run both again."""

import mesh
from gateway.demo.contracts import Coder, MendRequest

with mesh.SyncClient() as client:
    job = client.start("coder", Coder.mend, MendRequest(tree="unittest"), idempotency_key="mend-unittest")
    for event in job.watch():
        print(event.seq, event.type, event.data.get("name") or event.data.get("message") or "")
    print(job.result().verdict)
