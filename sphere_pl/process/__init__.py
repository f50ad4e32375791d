"""What the process meets: streams, signals, devices, memory, and how it ends."""
