"""All figures: python -m tests.bench (`make bench`).

Of the networks alone: python -m tests.bench nets; of a whole chest CT: python -m tests.bench chest.
"""

import sys

from tests.bench import chest, flow, idle, nets, pages, receive, where

if sys.argv[1:2] == ["nets"]:
    nets.main(sys.argv[2:])
elif sys.argv[1:2] == ["chest"]:
    chest.run()
else:
    receive.main(quick=False)
    where.main()
    flow.run()
    idle.run()
    pages.run()
    nets.main([])
    chest.run()
