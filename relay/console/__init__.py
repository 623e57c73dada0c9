"""The console: a page for operators at `/console`, drawn by the server, to see the relay and to steer it.

    session.py    who is signed in                          pure
    attempts.py   may one try another token                 pure
    history.py    rates of the last minutes                 pure
    sparkline.py  rates as a drawing                        pure
    words.py      how numbers and times are said            pure
    redact.py     what no page may show
    shard.py      Redis, off the event loop and in time
    sampling.py   looks at the relay now and then, once for all pages
    overview.py   what the first page shows
    letters.py    what the pages of dead letters show, and do
    stock.py      what the inventory shows
    live.py       the same pages again, as server-sent events
    pages.py      HTML of it, with the headers every page has
    site.py       the routes, and the door before them

Everything shown is from outside: the templates escape all of it.
"""
