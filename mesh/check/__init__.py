"""Conformance: what a Nexus gateway or handler must do, asked over real sockets of any URL.

case.py      the language of the cases           cases/       all 95 of them, by subject
play.py      playing one                         run.py       playing many, a report of them
targets.py   gateways and agents                 report.py    results, and what a set of them says
wire.py  listener.py   HTTP/1.1 of both sides    expect.py    whether a message is as expected
subject.py   an agent to be examined: the contract of specs/conformance.nexusrpc.yaml
agent*.py    the kit for agents' authors: a gateway that repeats, breaks off, comes late and changes its mind

Speaks plain HTTP to what it judges. Must not know the gateway, the registry or the store: a judge that shares code with
the accused sees what the accused sees.
"""
