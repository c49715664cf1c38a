"""Operations that start by the clock: cron with a time zone, what happens when runs overlap, backfill.

times.py       when: cron, zones, jitter. Pure          spec.py    what a caller says of a schedule, and its record
clockwork.py   fires what is due, on every gateway      surface.py `/v1/schedules`
"""
