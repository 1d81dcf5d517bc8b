"""What a notebook shows of an object."""

from operator import methodcaller

as_html = methodcaller("_repr_html_")
