/* Nothing of it is used: simulator.h defines what kernels need. */
