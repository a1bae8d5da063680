if not __name__.startswith("qcompiler."):
    raise ImportError(
        "import this package as qcompiler.passes; the folder at the top level is not a package of its own"
    )
