"""The application: ``POST /predict``, ``GET /health``, ``GET /version``."""

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image
from torch import Tensor

from experiments.client_model import ClientModel
from experiments.predict import answered, prepared
from experiments.predictions import about, prediction
from experiments.serving.batches import Batches, Busy
from experiments.serving.pictures import Limits, Refused, opened, read_pictures
from fedpgp.data.features import images_per_chunk
from fedpgp.data.images import Reading

WARM_UP = (8, 8)
"""Pixels of the picture that is answered before the first request: all of the model is loaded."""


def make_app(model: ClientModel, limits: Limits) -> FastAPI:
    """Return the application that answers with a client's model.

    Nothing is read from a disk for a request, and nothing written: the model is whole in memory
    before the first one, and a picture never leaves it.

    Args:
        model: of a client, or the global one.
        limits: of a request.
    """
    app = FastAPI(
        title="FedPGP predictions", version=model.digest[:12], docs_url=None, redoc_url=None
    )
    told, reading = about(model), Reading.of(model.config["dataset"])
    device = model.federation.method.task.device
    one = ThreadPoolExecutor(1, thread_name_prefix="model")
    readers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="reader")
    batches = Batches(lambda pixels: answered(model, pixels), one, images_per_chunk(device))

    def read(number: int, picture: bytes) -> Tensor:
        return prepared(model, opened(picture, number, reading, limits))

    warm_up = prepared(model, Image.new("RGB", WARM_UP))
    one.submit(answered, model, warm_up.unsqueeze(0)).result()

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """The classes of one picture (the body) or of several (the files of a form)."""
        pictures = await read_pictures(request, limits)
        loop = asyncio.get_running_loop()
        tasks = [
            loop.run_in_executor(readers, read, number, picture)
            for number, picture in enumerate(pictures, start=1)
        ]
        pixels = await asyncio.gather(*tasks, return_exceptions=True)
        if bad := [found for found in pixels if isinstance(found, BaseException)]:
            raise bad[0]
        answers = await batches.ask(pixels)
        return JSONResponse(
            {
                "prompt": told["prompt"],
                "predictions": [prediction(answer, told["classes"]) for answer in answers],
            }
        )

    @app.get("/health")
    async def health() -> dict:
        """Whether predictions are answered."""
        return {"status": "ok"}

    @app.get("/version")
    async def version() -> dict:
        """Which prompt answers, of which run, round and client, and among which classes."""
        return told

    # What is left of a body that was not read would be taken for the next request.
    close = {"Connection": "close"}
    app.add_exception_handler(
        Refused,
        _told(lambda error: (error.status, error.why, {} if error.status == 422 else close)),
    )
    app.add_exception_handler(
        Busy, _told(lambda error: (503, "too many pictures wait", {"Retry-After": "1"}))
    )
    return app


def _told(
    answer: Callable[[Exception], tuple[int, str, Mapping[str, str]]],
) -> Callable:
    async def handler(request: Request, error: Exception) -> JSONResponse:
        status, why, headers = answer(error)
        return JSONResponse({"error": why}, status, headers=headers)

    return handler
