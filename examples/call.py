"""A call: prints `Hello, Ada!` when the gateway and examples/agent.py run."""

import mesh

with mesh.SyncClient() as client:
    print(client.call("greeter", "greeter", "greet", "Ada"))
