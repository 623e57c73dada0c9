"""The HTTP side: the reporting API's own request, taken in by the queue instead.

    auth.py       who sends a request, and what for it may report     pure
    reports.py    what it reports, and what it is answered            pure
    openapi.py    the same, for machines                              pure
    tokens.py     the tokens that count now
    body.py       a request's body as it comes in
    reporting.py  where events are reported
    app.py        which request goes where
    server.py     how all of it listens, and ends

Needs the extra `gateway`.
"""
