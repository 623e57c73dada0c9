"""The HTTP side: the reporting API's own request, taken in by the queue instead.

    auth.py         who sends a request, and what for it may report     pure
    reports.py      what it reports                                     pure
    answers.py      what it is answered                                 pure
    cloudevents.py  the same, in a CloudEvent                           pure
    cdevents.py     the same, as a CDEvent                              pure
    purl.py         which image a CDEvent's artifact is                 pure
    attributes.py   what names an event that others made                pure
    openapi.py      all of it, for machines                             pure
    browsers.py     requests of other sites' pages                      pure
    tokens.py       the tokens and secrets that count now
    counted.py      log lines of what any client can cause
    heads.py        a connection: what a request's head may be
    body.py         a request's body as it comes in, and its answer
    answering.py    between ASGI's messages and the values
    reporting.py    where events are reported
    reviewing.py    Kubernetes' admission reviews
    nodes.py        platforms of the cluster's nodes, for reviews
    console/        pages for operators
    app.py          which request goes where
    server.py       how all of it listens, and ends

Needs the extra `gateway`.
"""
