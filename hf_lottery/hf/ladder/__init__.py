"""The transfer ladder: every way of reusing a ticket, on the same networks, budget and sparsity.

``rows`` says what each row trains, ``cells`` what must be computed and under which name a result is kept, ``compute``
and ``workers`` compute it, ``results`` and ``table`` turn it into numbers, and ``main`` is the command line.
"""
