"""Results drawn over their image: regions of classes and objects with outlines, labels and a legend.

A class has the same color in every image and task. Each of its objects has a shade of that color.
"""
