"""The data doctor: what is wrong with a folder of labelled photos, before a search spends time on it.

`layout` looks at folders and names, `pictures` at each file, `twins` at pictures that come twice, `suspects` at labels
that a trained bundle does not believe; `doctor` puts them together, `table` and `page` show the result. All of them
read with `rayml.folders`, `rayml.formats` and `rayml.images`, so they judge with the eyes of training and serving.
"""
