"""The HTTP gateway: accepts the deployment API's own request, and enqueues it.

    server.py              listening, TLS, shutdown
    app.py                 routes, and the last error handler
    report_endpoint.py     `POST` of events
    admission_endpoint.py  Kubernetes' admission reviews
    nodes.py               platforms of the cluster's nodes, for reviews
    tokens.py              the tokens and secrets in force
    openapi.py             the description at /openapi.json           pure
    http_limits.py         limits of a connection and a request's head
    asgi.py                headers, body and response over ASGI
    compression.py         decompression of bodies                    pure
    webhook.py             CloudEvents' web hooks                     pure
    responses.py           the responses                              pure
    report_parsing.py      a request as deployment events             pure
    auth.py                tokens and their environments              pure
    cloudevents.py         a CloudEvent as a deployment event         pure
    cdevents.py            a CDEvent as a deployment event            pure
    purl.py                a CDEvent's artifact as an image           pure
    cloudevent_ids.py      the id of a CloudEvent                     pure

Needs the extra `gateway`.
"""
