"""Load tests of a ranking service over HTTP. Knows the API, and nothing of how it is served.

material, mistakes -> traffic      what is asked: users, candidates, formats, bad requests
schedule                           when
client -> open_loop -> search      arrivals on a schedule; the highest rate that meets the goal
locustfile                         the same traffic from Locust's waiting users
outcome -> samples -> run          what came back, as one JSON document
page (charts), compare             the document as HTML, and two of them as ratios
"""
