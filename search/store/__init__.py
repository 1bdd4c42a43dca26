"""The run's database: an append-only event log, and the tables derived from it.

SQLite in WAL mode with ``synchronous=FULL``, or with a rollback journal where the file system asks for it: what
:meth:`Store.append` has returned from survives kill -9, a power cut and a full disk. One call is one transaction. Item
scores lie as float64 arrays in a table of their own, written in the transaction of the event that announces them.

Events form a chain of digests, which also binds the item scores: what is damaged is found, named, and left out by a
salvage. A fence number in every transaction keeps a process that was asleep from writing after another one has taken
the run over. Nothing in the file is ever unpickled.
"""

from search.store.connecting import CONTROL, DATABASE, FIRST, is_run, under_way
from search.store.database import Store
from search.store.reading import Candidate
from search.store.schema import FORMAT, READABLE

__all__ = ["CONTROL", "DATABASE", "FIRST", "FORMAT", "READABLE", "Candidate", "Store", "is_run", "under_way"]
