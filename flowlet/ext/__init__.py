"""What joins flowlet to other libraries, a module for each; nothing of it is imported until somebody asks for it."""
