"""A run as one page for people: RUN -> one HTML file that needs no network and runs no script.

The plots are Matplotlib's, as SVG inside the page. A plotting library for browsers (Plotly, Vega) would bring 1 to 5 MB
of script into every page, show nothing on paper before it has run, and need a weaker Content-Security-Policy; what
it would add, numbers under the pointer, SVG titles and the tables give as well.
"""

from rayml.report.page import keep_report, watch_run, write_report

__all__ = ["keep_report", "watch_run", "write_report"]
