"""Methods: each turns completions into per-token streams. One short file a method.

A method knows neither engines nor optimisers. `registry.build_method` maps a name to its class;
adding a method is one file here, one line there and one YAML in `conf/method/`.
"""
