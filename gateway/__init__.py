"""What moves: HTTP in, HTTP out, and what a person or a supervisor starts. The top of the house: nothing imports it.

A process    server.py runs one, app.py joins its parts (`Mesh`), settings.py, settings_file.py are what can be set
HTTP in      http.py, auth.py and problems.py at the door; nexus.py, api.py, endpoints.py, tasks.py, streams.py are the
             surfaces, start_body.py, wishes.py and tasks_body.py what they take, batches.py with batch_lines.py takes
             many starts, step_results.py what stands outside journals,
             routes.py has what is not hot; declared.py, declared_tasks.py, openapi.py say so
One door     operations.py: everything about operations goes through it; many.py, orders.py, starts.py, reading.py,
             journals.py and listing.py do what it is asked, carrying.py lets a request send what it brings about,
             history.py and details.py are what a look at one shows
HTTP out     courier.py takes leased deliveries, starts.py and deliveries.py send them, answers.py and callbacks.py are
             what replies mean and callbacks look like, outcomes.py how an end looks to a caller; egress.py and
             egress_rules.py say where to
Agents       that fetch their work instead of being called: pull/
Time         ticker.py fires what is due, waiters.py wakes who waits, metrics.py counts; schedules/ start by the clock
For people   cli/ the `mesh` command, demo/ the story behind `make demo`

May import registry and mesh. Knows no Redis; FastAPI, uvicorn and typer live here and nowhere below.
"""
