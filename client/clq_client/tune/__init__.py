"""Tries settings of the service on this machine: clq-client tune.

    candidates -> halving.halve -> (server.service, trial.try_candidate) for each -> command

The service is only known by its command, its CLQ_SERVE_* variables and its HTTP interface.
"""
