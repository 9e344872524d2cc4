"""EasyEdit's own methods as contenders. Nothing here installs the flag."""
