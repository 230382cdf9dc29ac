"""What the MedSAM2FT module does apart from Qt: standard library and numpy only, Python 3.9 and later.

`scene` is the exception: it speaks to Slicer's scene.
"""
