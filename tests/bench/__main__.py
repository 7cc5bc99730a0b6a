"""All figures: python -m tests.bench (`make bench`)."""

from tests.bench import flow, receive

receive.main()
flow.run()
