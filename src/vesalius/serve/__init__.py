"""The annotator's server: a project folder, sessions with promptable models, background jobs, and their REST surface.

``uvicorn`` and ``fastapi`` (extra ``serve``) are needed by ``command``, ``app`` and the routes only; importing this package loads nothing.
"""
