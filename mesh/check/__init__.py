"""Conformance: what a Nexus gateway or handler must do, asked over real sockets of any URL.

report.py    results of checks, and what a set of them says

Speaks plain HTTP to what it judges. Must not know the gateway, the registry or the store: a judge that shares code with
the accused sees what the accused sees.
"""
