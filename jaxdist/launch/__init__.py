"""Processes of one machine that join into one JAX program: started, watched, always ended.

Nothing here imports JAX.
"""
