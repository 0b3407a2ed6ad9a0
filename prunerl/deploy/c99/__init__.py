"""Portable C99 of a deployed policy: what each operation becomes, and how arrays and scratch memory are laid out."""
