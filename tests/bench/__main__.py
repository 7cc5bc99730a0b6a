"""All figures: python -m tests.bench (`make bench`); those of the networks alone: python -m tests.bench nets."""

import sys

from tests.bench import flow, nets, receive

if sys.argv[1:2] == ["nets"]:
    nets.main(sys.argv[2:])
else:
    receive.main()
    flow.run()
    nets.main([])
