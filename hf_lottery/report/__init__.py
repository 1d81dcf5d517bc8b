"""Report: tables in Markdown, pictures with their numbers as CSV beside them, and one HTML page that holds them all.

What another function returns, these functions take: a barrier, a plane, an overlap, a match, a mask, a history.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .bars import plot_layers, plot_match
    from .curves import plot_against_density, plot_barriers, plot_norm_path, plot_sign_flips
    from .maps import plot_overlap, plot_plane
    from .page import Section, write_report
    from .rows import EmptyRows, empty_rows
    from .style import Picture
    from .tables import Table, barrier_rows, level_rows, level_table, markdown_table
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "bars": ["plot_layers", "plot_match"],
            "curves": ["plot_against_density", "plot_barriers", "plot_norm_path", "plot_sign_flips"],
            "maps": ["plot_overlap", "plot_plane"],
            "page": ["Section", "write_report"],
            "rows": ["EmptyRows", "empty_rows"],
            "style": ["Picture"],
            "tables": ["Table", "barrier_rows", "level_rows", "level_table", "markdown_table"],
        },
    )

__all__ = [
    "EmptyRows",
    "Picture",
    "Section",
    "Table",
    "barrier_rows",
    "empty_rows",
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
