"""Which group of nodes gets which format: its effect on the output, its cost, and a solver between both."""
