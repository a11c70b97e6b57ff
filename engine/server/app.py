"""The HTTP application: routes over a started AsyncLLM."""

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from ..async_llm import AsyncLLM
from .admin import add_admin_routes, add_model_routes
from .anthropic.routes import add_messages_routes
from .chat import add_chat_routes
from .completions import add_completion_routes
from .door import Door
from .embeddings import add_embedding_route
from .errors import add_error_handlers
from .gate import Gate
from .health import add_health_routes
from .native import add_generate_route
from .ollama.routes import add_ollama_routes
from .openapi import ERRORS, document
from .options import ServerOptions
from .page import add_page_routes
from .reranking import add_rerank_route
from .responses_api.routes import add_response_routes
from .scoring import add_score_route
from .state import Server


def create_app(llm: AsyncLLM, options: ServerOptions) -> FastAPI:
    """The application over a started `llm`, which the caller closes. Its Server is `app.state.server`."""
    server = Server(llm, options)
    # No pages of FastAPI's: they load scripts from elsewhere.
    pages: dict[str, Any] = {"docs_url": None, "redoc_url": None}
    app = FastAPI(title="radixmesh", version="1", redirect_slashes=False, responses=ERRORS, **pages)
    app.openapi = lambda: document(app, app.state.bodies)  # type: ignore[method-assign]
    app.state.server = server
    app.state.bodies = []  # that the routes take, as post() adds them
    app.add_middleware(Door, guard=server.guard, options=options)
    app.add_middleware(Gate, metrics=server.metrics, journal=server.journal)
    if origins := options.cors_allow_origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    add_error_handlers(app)
    add_completion_routes(app, server)
    add_chat_routes(app, server)
    add_embedding_route(app, server)
    add_score_route(app, server)
    add_rerank_route(app, server)
    add_response_routes(app, server)
    add_generate_route(app, server)
    add_messages_routes(app, server)
    add_ollama_routes(app, server)
    add_model_routes(app, server)
    add_admin_routes(app, server)
    add_health_routes(app, server)
    add_page_routes(app, server)
    return app
