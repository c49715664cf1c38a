"""The durable part: a state machine in Lua on Valkey or Redis, and all that this project knows of either.

Verbs        store.py, durable.py and pulls.py operations and running attempts, catalog.py the registry's rows,
             records.py plain reads; verbs.py, starting.py and parcels.py what goes in and out, functions.py one call,
             merging.py those that travel together; library.py the functions themselves, put together from lua/, where
             names.py turns names into places
On disk      keys.py every key, layout.py how an operation lies under it, identity.py which store this is, marker.py
             what the embedded one remembers beside it
Trust        gate.py may this store keep acknowledged work
The line     address.py, dial.py, connection.py, link.py from a URL to a connection that heals, riding.py when calls
             that nobody waits for leave on it; subscriber.py hints
Embedded     embedded.py a supervised server on a private directory, child.py one run of it, binary.py which server

Imported by gateway and registry through Store and the catalog's rows. No transition reads first from Python.
"""
