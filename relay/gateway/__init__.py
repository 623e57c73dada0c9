"""The HTTP side: the reporting API's own request, taken in by the queue instead.

    auth.py         whether a request may report                       pure
    reports.py      what it reports, and what it is answered           pure
    cloudevents.py  the same, in a CloudEvent                          pure
    cdevents.py     the same, as a CDEvent                             pure
    purl.py         which image a CDEvent's artifact is                pure
    attributes.py   what names an event that others made               pure
    app.py          the server: sockets, Redis, and nothing decided

Needs the extra `gateway`; only `app.py` and `purl.py` import what it brings.
"""
