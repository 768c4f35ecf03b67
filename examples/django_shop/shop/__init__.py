"""A shop with Django, in as few files as Django allows; begin with shop/work.py."""
