"""What the command lines share: config files and the parts that they make, devices, exit codes."""
