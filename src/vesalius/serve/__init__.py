"""The annotator's server: a project folder, sessions with promptable models, background jobs, and their REST surface.

``uvicorn`` and ``fastapi`` (extra ``serve``) are needed by ``app`` only; importing this package loads nothing.
"""
