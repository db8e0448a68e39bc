"""Who may ask what, how often, and what is noted about it.

Belongs here: keys, tokens, roles, limits, the access log and the middleware that applies them to every request before
any route sees it. Does not belong here: what a route answers.
"""
