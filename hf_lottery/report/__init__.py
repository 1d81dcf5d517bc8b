"""Report: numbers -> Markdown, PNG with the numbers as CSV beside it, and one HTML page that needs nothing else."""

from .bars import plot_layers, plot_match
from .curves import plot_against_density, plot_barriers, plot_norm_path, plot_sign_flips
from .dead import DeadUnits, dead_units
from .maps import plot_overlap, plot_plane
from .page import Picture, Section, write_report
from .tables import Table, level_rows, level_table, markdown_table

__all__ = [
    "DeadUnits",
    "Picture",
    "Section",
    "Table",
    "dead_units",
    "level_rows",
    "level_table",
    "markdown_table",
    "plot_against_density",
    "plot_barriers",
    "plot_layers",
    "plot_match",
    "plot_norm_path",
    "plot_overlap",
    "plot_plane",
    "plot_sign_flips",
    "write_report",
]
