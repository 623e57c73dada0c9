"""The console: server-rendered pages for operators at `/console`, to see the relay's status and to act on it.

    routes.py        the routes and the pages
    actions.py       what the forms do
    sign_in.py       sign-in, sign-out, the session's cookie
    forms.py         reading of a form
    overview.py      the overview page                       pure
    dead_letters.py  the dead letters' pages and actions
    inventory.py     the inventory page
    sse.py           live pages
    status_cache.py  the status, read once for all pages
    queue_client.py  Redis in threads, within a deadline
    pages.py         HTML, assets and headers
    session.py       the cookie                              pure
    attempts.py      lock-out after wrong tokens             pure
    history.py       delivery rates                          pure
    sparkline.py     their chart                             pure
    filters.py       numbers and times as text               pure

All values shown come from outside: the templates escape every one.
"""
