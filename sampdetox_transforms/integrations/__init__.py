"""Classes that other libraries ask to inherit from theirs, a module a library; each needs the library of its name."""
