"""llama.cpp on the CPU, as a process of its own."""
