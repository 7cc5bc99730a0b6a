"""The ledger: what the node knows and must not forget. The only place that talks SQL.

SQLite in the embedded default, PostgreSQL when a site runs several workers; the same statements on both.
The spool folder is the truth about images, this is its index; about jobs and receipts the ledger is the truth.
Every job write carries `WHERE generation = :mine`, so a worker that was taken for dead cannot overwrite its successor.
"""

from __future__ import annotations

from pacs_node.ledger.accounts import AccountRows
from pacs_node.ledger.feedback import FeedbackRows
from pacs_node.ledger.holdings import Holdings
from pacs_node.ledger.notices import Notices
from pacs_node.ledger.pages import Pages
from pacs_node.ledger.refusals import MOST_REFUSALS, Refusals
from pacs_node.ledger.settings import SettingsRows
from pacs_node.ledger.shadows import Shadows
from pacs_node.ledger.traces import TraceRows
from pacs_node.ledger.workers import Workers

__all__ = ["MOST_REFUSALS", "Ledger"]


class Ledger(Holdings, Refusals, Workers, AccountRows, FeedbackRows, SettingsRows, Notices, Pages, Shadows, TraceRows):
    """Every question and every change the node has about its rows. One transaction per method.

    Any of them raises LedgerUnavailable when the database cannot be reached.
    """
