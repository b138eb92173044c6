"""Tables and pictures, from traces and results only.

tables.py prints results, paper.py knows the published ones, timeline.py draws who did what when.
"""
