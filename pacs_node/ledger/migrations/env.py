"""Alembic's entry: runs the migrations on the engine the ledger hands over, one process at a time."""

import sqlalchemy as sa
from alembic import context

LOCK = 0x70616373  # "pacs": of the database, held by whoever migrates it; SQLite locks its file

engine = context.config.attributes["engine"]
with engine.connect() as connection:
    shared = engine.dialect.name == "postgresql"
    if shared:
        connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        connection.commit()
    try:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    finally:
        if shared:
            connection.rollback()
            connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
            connection.commit()
