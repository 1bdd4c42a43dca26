"""What a search will take, before it is started: counts, time and disk, for ``paretomerge plan``.

:mod:`~search.forecast.outline` is what a config asks for, :mod:`~search.forecast.costs` what one merge and one
evaluation cost, :mod:`~search.forecast.arithmetic` what follows from both; :mod:`~search.forecast.plan` does all of it.
"""
