"""Who can be called: endpoints, their instances, how they are and which one takes the next request. Opens nothing.

What is registered   spec.py the bodies and their caps, policy.py the defaults, contracts/ what inputs must look like
Compiled             endpoint.py one endpoint for the hot path, catalog.py all of them and the verbs that change them,
                     gate.py whether a registration may take the place of what is there
Who is alive         presence.py the verbs, instance.py one judged, instances.py leases as read, health.py calls
Who gets work        choice.py versions by shares and two by weight, routing.py admission and the breaker
As users see it      records.py flat records and pages, versions.py who runs what, watch.py changes with a cursor

May import mesh. Knows no HTTP and no gateway.
"""
