"""Who can be called: endpoints, their instances, how they are and which one takes the next request. Opens nothing.

What is registered   spec.py the bodies and their caps, policy.py the defaults, contracts/ what inputs must look like
Compiled             endpoint.py one endpoint for the hot path, catalog.py all of them and the verbs that change them,
                     gate.py whether a registration may take the place of what is there
Who is alive         instances.py leases and draining, health.py the judgements, routing.py the choice
As users see it      records.py flat records and pages, watch.py changes step by step

May import mesh. Knows no HTTP and no gateway.
"""
