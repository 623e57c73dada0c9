"""The HTTP side: the reporting API's own request, taken in by the queue instead.

    auth.py     whether a request may report                       pure
    reports.py  what it reports, and what it is answered           pure
    app.py      the server: sockets, Redis, and nothing decided

Needs the extra `gateway`; only `app.py` imports it.
"""
