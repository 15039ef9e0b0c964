"""The course's own machinery: run, check, form, book, lab (``python -m retina_lab.course``).

This is the only part of the library that knows about notebooks. ``template`` holds the rules that
every notebook keeps, ``runner`` executes notebooks and finds what went wrong in them,
``committed`` puts one into the form in which it is committed, ``book`` renders the course for
reading without a network, ``references`` reads the bibliography that all of them share.
"""
