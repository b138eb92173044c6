"""Tables and pictures, from traces and results only.

tables.py prints results, paper.py knows the published ones, timeline.py draws who did what when. throughput.py, heatmap.py and
staleness.py plot, in the style of style.py; figures.py reads what they are drawn from.
"""
