"""Agents that ask for their work: endpoints of kind pull (specs/protocol.md, from P280 on).

frames.py      what polls and tasks look like        desk.py       polls that wait, and who gets what
surface.py     the routes                            window.py     the polls of one endpoint
answering.py   what agents say about their attempts  attendance.py polling instances in the registry
untold.py      cancels that wait for a poll          salvage.py    a frame of which a part cannot be read
"""
