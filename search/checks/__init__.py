"""Everything that is wrong, or odd, with what a config asks for, found at once and before anything is started.

:func:`search.checks.course.check_config` is where it begins. Each module looks at one side of it: models, their tokens
and licences, evaluators and their items, the space and the budget, the machine. Whatever one of them meets becomes a
finding at its place in the file, and hides nothing that another one would find.
"""
