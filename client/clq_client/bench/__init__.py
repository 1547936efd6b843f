"""The load tester: arrivals, connections, loops, figures, plot.  Standard library only.

    images -> target.request_bytes -> loops.open_loop / closed_loop -> figures.figures_of -> report

Latency in an open loop counts from the scheduled arrival, so that a server that stalls cannot hide
the requests that would have come meanwhile (coordinated omission).
"""
